"""Three exporters on one database while they and it go wrong; `python -m tests.fleet` is the long version."""

import random
import signal
import threading
import time
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.e2e.harness import audit, program
from tests.fleet import TAKEN_OVER, Team, World
from tests.postgres import programs

pytestmark = pytest.mark.servers


def test_no_run_is_lost_or_shown_twice_while_members_and_database_go_wrong(tmp_path: Path) -> None:
    program("prometheus")
    programs()
    with ExitStack() as stack:
        world = World(random.Random(1))  # noqa: S311
        stack.callback(world.modus.close)
        team = Team(tmp_path, world, stack)
        team.wait_for_even_shares()
        still = threading.Thread(target=team.stand_still, args=("member-1", TAKEN_OVER))
        still.start()
        team.kill("member-0")
        time.sleep(4)
        team.server.cut_connections()
        team.start("member-0")
        still.join()
        team.wait_for_even_shares()
        team.outage(signal.SIGINT, 0.5)
        team.stop("member-2")
        assert team.verify() == []
        # ten each: from who dies, from who stands still, to those two when they are back, from who stops
        assert team.handovers >= 50, "not all was taken over"
        code, table = audit(team.file)
        assert code == 0, table
