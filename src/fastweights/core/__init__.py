"""The memory itself: rules, their exact engines, and the suite that certifies them. torch only, no parameters."""
