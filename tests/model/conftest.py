"""How far the search goes: `--hypothesis-profile=long` is that of `make model`."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("long", max_examples=3_600)
