"""docs/http.md shows commands that work."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path

from tensorbus.bus.testing import running_broker

PAGE = Path(__file__).parents[2] / "docs" / "http.md"


async def test_the_commands_of_the_page_do_what_it_says(tmp_path: Path) -> None:
    """All blocks run in one shell, in their order, against a real broker; none fails."""
    blocks: list[str] = re.findall(r"^```bash\n(.*?)^```", PAGE.read_text(), re.M | re.S)
    assert len(blocks) > 8
    async with running_broker(tmp_path / "data") as url:
        script = "\n".join(blocks).replace("U=http://127.0.0.1:8080", f"U={url}")
        # Errors end the script, but for the one that the page wants to show.
        script = re.sub(r'curl -s(?= )(?! "\$U/v1/messages\?limit=0")', "curl -s --fail-with-body", script)
        shell = await asyncio.create_subprocess_exec(
            *("bash", "-euo", "pipefail", "-c", script),
            cwd=tmp_path,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.STDOUT,
        )
        said = (await shell.communicate())[0].decode()
    assert shell.returncode == 0, said
    for promised in (
        '{"status": "alive"}',
        '"duplicate": true',
        "Upload-Offset: 100",
        '"reason": "malformed"',
        "urn:tensorbus:problem:invalid-request",
        '{"status": "ready"}',
    ):
        assert promised in said, said
    assert (tmp_path / "part.frames").read_bytes() == (tmp_path / "body.frames").read_bytes()[:100]
