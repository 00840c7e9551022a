"""`python -P -m k8s.scaling`, in the repository's root: prints the tables of docs/scaling.md and draws its picture."""

import sys
from pathlib import Path

from k8s.scaling.costs import CPU, H100, L4, on_card
from k8s.scaling.policy import DEPLOYED
from k8s.scaling.report import PEAKS, SHOWN_PEAK, cost_table, hot_table, runs, write_picture

# 128 is what a card is given unasked; one that is ten times slower should be given less.
fast = list(runs(on_card(H100, 128), PEAKS))
crowded = list(runs(on_card(L4, 128), [SHOWN_PEAK]))
slow = list(runs(on_card(L4, 64), [SHOWN_PEAK]))
measured = list(runs(CPU, [10, 100]))
hot = next(run for run in slow if run.policy == DEPLOYED)
for table in (*map(cost_table, (fast, crowded, slow, measured)), hot_table(hot)):
    sys.stdout.write(table + "\n\n")
write_picture(fast, slow, Path("docs/scaling.png"))
