"""The folder of the whole repository, in which tests find documents and configuration."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
