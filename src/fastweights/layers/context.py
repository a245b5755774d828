from __future__ import annotations
class MAC: pass
