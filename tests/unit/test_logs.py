"""No text that came from outside begins a line of the log, or turns one around, in any format."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import unicodedata

import pytest

from assignment_workers.logs import escaped

PROGRAM = """
import json, logging, sys
import structlog
from assignment_workers import logs

logs.set_up(sys.argv[1])
log = structlog.get_logger("assignment_workers.test")
for text in json.load(sys.stdin):
    log.warning("planted", request_id=text, each=[text])
    logging.getLogger("another").warning("planted %s", text)
    try:
        raise ValueError(text)
    except ValueError:
        log.exception("failed")
"""
CONTROLS = [
    chr(code)
    for code in (*range(0x20), *range(0x7F, 0xA0), 0x200B, 0x200E, 0x2028, 0x2029, 0x202E, 0x2066)
]
FORGED = "level=error event=forged"


@pytest.mark.parametrize("form", ["logfmt", "json", "console"])
def test_a_control_character_is_escaped_in_every_format(form: str) -> None:
    planted = [f"a{control}{FORGED}" for control in CONTROLS]
    ran = subprocess.run(
        [sys.executable, "-c", PROGRAM, form],
        input=json.dumps(planted),
        capture_output=True,
        check=True,
        encoding="utf-8",
    )
    lines = ran.stderr.split("\n")[:-1]
    assert not [line for line in lines if line.lstrip().startswith(FORGED) and line[0] != " "]
    assert not [
        (line, each)
        for line in lines
        for each in re.sub(r"\x1b\[\d*m", "", line)
        if unicodedata.category(each) in {"Cc", "Cf", "Zl", "Zp"}
    ]
    if form == "console":
        own = [line for line in lines if not line.startswith((" ", "Traceback", "ValueError"))]
    else:
        own = lines
    assert len(own) == 3 * len(planted)


def test_what_can_be_printed_stays_as_it_is() -> None:
    for said in ("an ordinary reason: 2 + 2 = 4", "Ångström, 電話", "\\n is two letters"):
        assert escaped(said) == said
    assert escaped("a\nb\u202ec\x85") == "a\\nb\\u202ec\\x85"
