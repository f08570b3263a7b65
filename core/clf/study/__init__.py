"""Studies: a YAML that names trainings by row, column and seed, what is missing of them run, and tables of the records.

Reading (:mod:`~clf.study.spec`, :mod:`~clf.study.records`, :mod:`~clf.study.tables`) needs no torch; running
(:mod:`~clf.study.runner`) does.
"""
