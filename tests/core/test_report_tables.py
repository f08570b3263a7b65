"""Tables of measurements, and what is said of single classes."""

import re
from typing import Any

from clf.evaluate.results import (
    NO_GAIN,
    ClassScore,
    Evaluation,
    FewLabels,
    FewShot,
    FineTuned,
    KnnScore,
    Representation,
    Retrieval,
)
from clf.report.classes import Confusion, bars, classes, confusions, judge
from clf.report.tables import evaluations, table
from clf.report.verdicts import Facts, gain


def evaluation(**trained: Any) -> Evaluation:
    """A random encoder with classes, and a trained one with what is given."""
    before = (score("cat", 10, 0.3, 0.4), score("<dog>", 20, 0.2, 0.2))
    knn = (KnnScore(k=20, voters=20, accuracy=0.5),)
    rows = (
        Representation(name="random encoder", dim=8, seconds=1, knn=knn, per_class=before),
        Representation(name="trained encoder", dim=8, seconds=1, knn=knn, **trained),
    )
    return Evaluation(
        run="r", step=1, data="toy", fingerprint="f", train_images=90, test_images=30, classes=2, representations=rows,
        verdict=None, protocol={"few shot": "episodes of <unseen> classes"}, notes=("a note & more",), device="cpu",
        seconds=1.0, created="2026-01-01", clf_version="0",
    )  # fmt: skip


def score(name: str, images: int, knn: float, linear: float) -> ClassScore:
    return ClassScore(name=name, images=images, knn=knn, linear=linear)


TRAINED = (score("cat", 10, 0.5, 0.6), score("<dog>", 20, 0.75, 0.8))


def test_every_measurement_is_a_table_with_its_protocol() -> None:
    found = evaluation(
        few_labels=(FewLabels(share=0.01, images=500, accuracy=0.4, std=0.012, repeats=5),),
        few_shot=(FewShot(ways=5, shots=1, accuracy=0.421, interval=0.004, episodes=600),),
        retrieval=Retrieval(
            mean_average_precision=0.25, recall={"1": 0.5}, precision={"1": 0.5, "5": 0.375}, queries=9, searched=90
        ),
        fine_tuned=FineTuned(accuracy=0.9, epochs=10, seconds=1234.0),
    )
    html = evaluations({"toy": found})
    assert html.count("<table>") == 5
    for cell in ("40.0 ± 1.2", "42.1 ± 0.4", "25.0", "37.5", "90.00"):
        assert f'<td class="number">{cell}</td>' in html
    first, _, fold = html.partition("<details>")
    assert "episodes of &lt;unseen&gt; classes" in fold
    assert "a note &amp; more" in first


def test_what_was_not_measured_has_no_table() -> None:
    assert evaluations({"toy": evaluation()}).count("<table>") == 1


def test_a_table_is_escaped_and_names_its_rows() -> None:
    html = table(["a", "<b>"], [["<x>", "1"], ["y", "2"]], "<caption>")
    assert "<x>" not in html
    assert html.count('scope="row"') == 2
    assert '<tr class="best"><th scope="row">y</th>' in html
    assert "<caption>&lt;caption&gt;</caption>" in html


def test_judge_counts_right_answers_and_repeated_mistakes() -> None:
    labels = [0, 0, 0, 0, 1, 1, 2]
    guesses = [0, 1, 1, 2, 1, 1, 0]
    found = judge(labels, guesses, ("cat", "dog"), voters=20, bank=5)
    assert found.recall == [("cat", 4, 0.25), ("dog", 2, 1.0), ("class 2", 1, 0.0)]
    assert found.confusions == [Confusion("cat", "dog", 2, 4)]
    assert found.voters == 5
    assert "2 of 4" in confusions(found)
    assert confusions(judge([0, 1], [0, 1], (), 1, 2)) == ""


def test_bars_are_sorted_and_stand_beside_the_random_encoder() -> None:
    found = bars(evaluation(per_class=TRAINED), None)
    assert [(bar.name, bar.trained, bar.random, bar.linear) for bar in found] == [
        ("<dog>", 0.75, 0.2, 0.8),
        ("cat", 0.5, 0.3, 0.6),
    ]
    html = classes(evaluation(per_class=TRAINED), None)
    assert "<dog>" not in html
    assert html.index("&lt;dog&gt;") < html.index("cat")
    assert re.findall(r"width: ([0-9.]+)%.*?left: ([0-9.]+)%", html) == [("75.00", "20.00"), ("50.00", "30.00")]
    assert re.findall(r'number">([^<]+)</td>', html)[:4] == ["75.0", "20.0", "+55.0", "80.0"]


def test_without_an_evaluation_the_reports_own_answers_are_shown() -> None:
    judged = judge([0, 0, 1, 1], [0, 0, 0, 1], ("cat", "dog"), 20, 100)
    assert [bar.name for bar in bars(None, judged)] == ["cat", "dog"]
    html = classes(evaluation(), judged)
    assert "k-NN with 20 of 100 training images, on 4 test images" in html
    assert "random encoder</th>" not in html


def test_one_class_or_none_says_nothing() -> None:
    assert classes(None, None) == ""
    assert classes(None, judge([0, 0], [0, 0], (), 1, 2)) == ""


def test_of_many_classes_those_between_are_folded() -> None:
    judged = judge(list(range(30)), [i if i < 15 else 0 for i in range(30)], (), 1, 30)
    html = classes(None, judged)
    assert html.count('scope="row"') == 30
    assert "6 classes between them" in html


def test_what_a_verdict_says_is_not_said_again_beside_the_tables() -> None:
    found = evaluation().model_copy(update={"notes": (f"{NO_GAIN}: k-NN 50.0 % against 50.0 %", "another note")})
    html = evaluations({"toy": found})
    assert NO_GAIN not in html
    assert "another note" in html
    assert [verdict.kind for verdict in gain(Facts([], {}, {}, evaluations=(found,)))] == ["bad"]
