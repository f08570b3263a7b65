"""``clf compare``: runs side by side, from four files of each run folder and without torch.

Runs that differ in nothing but their seed are one group, which has a mean and a standard deviation; groups are compared
with one of them in pairs of equal seeds. Runs on different images are refused, or flagged in every output.
"""

from clf.compare.comparison import Comparison, compare
from clf.compare.page import write_page
from clf.compare.plain import to_plain

__all__ = ["Comparison", "compare", "to_plain", "write_page"]
