"""How an evaluation was made, and what its reader must know, in words."""

from __future__ import annotations

import math
from collections.abc import Sequence

from clf.data import DataSource
from clf.evaluate import few_labels, few_shot, fine_tune, retrieval
from clf.evaluate.linear import HELD_OUT, STRENGTHS
from clf.evaluate.material import DIAGNOSED, PAIRS, Material
from clf.evaluate.pixels import LARGEST_RAW
from clf.evaluate.results import NO_GAIN, Representation, gain
from clf.evaluate.scores import KNN, TEMPERATURE, left_out
from clf.experiment import Experiment


def protocol(trained: Experiment, source: DataSource, material: Material, everything: bool) -> dict[str, str]:
    """What was measured how."""
    size, channels = trained.data.image_size, trained.data.channels
    epoch = trained.step / trained.spec.steps_per_epoch
    words = {
        "encoder": f"last checkpoint (step {trained.step}, epoch {epoch:.4g} of {trained.config.train.epochs}), "
        "not the best of several",
        "features": "output of the encoder in evaluation mode; the projector is not part of it",
        "images": f"clean (no augmentation), {size} x {size} x {channels}, scaled to [0, 1]",
        "split": f"{source.split_note}; bank of {len(material.bank)} training images, "
        f"{len(material.queries)} test images",
    }
    if material.scorable:
        words |= _of_scores(material, size)
        words |= _of_all(material) if everything else {}
    words["label-free figures"] = (
        f"on {min(DIAGNOSED, max(len(material.queries), 2) if len(material.queries) > 1 else len(material.bank))} "
        f"{'test' if len(material.queries) > 1 else 'training'} images; alignment on the method's own views of at most "
        f"{PAIRS} training images of the run"
    )
    return words


def _of_scores(material: Material, size: int) -> dict[str, str]:
    return {
        "k-NN": f"offline: cosine on L2-normalised features, votes exp(cosine / T), T = {TEMPERATURE}, bank = training "
        "split (Wu et al. 2018)",
        "linear probe": "offline: multinomial logistic regression (L-BFGS, full batch, to convergence) on standardised "
        f"frozen features; L2 strength from {STRENGTHS[0]:g} to {STRENGTHS[-1]:g}, chosen on {HELD_OUT:.0%} of the "
        "training split, then refitted on all of it; the test split is read once",
        "per class": f"share of a class's test images that k-NN (k = {min(KNN)}) and the linear probe put in it",
        "raw pixels": f"flattened clean images in [0, 1], averaged down to {LARGEST_RAW} x {LARGEST_RAW}"
        if size > LARGEST_RAW
        else "flattened clean images in [0, 1]",
        "sampling error": f"an accuracy near 50 % has a 95 % interval of ± {98 / len(material.queries) ** 0.5:.1f} "
        f"points from the {len(material.queries)} test images alone; other seeds add to it",
    }


def _of_all(material: Material) -> dict[str, str]:
    return {
        "few labels": "linear probe on frozen features (SimCLR, section 4.2, fine-tunes the network instead) from a "
        f"share of the training labels, the same of each class; mean ± standard deviation over {few_labels.REPEATS} "
        f"random subsets, one test split; strength chosen on {HELD_OUT:.0%} of the subset; features are standardised "
        "by the whole training split, which takes no labels",
        "few-shot": f"{few_shot.EPISODES} episodes of {few_shot.WAYS} classes, or all if fewer: nearest class mean of "
        "L2-normalised features (SimpleShot's L2N), shots from the training split, up to "
        f"{few_shot.QUERIES} queries of each class from the test split; mean and its 95 % interval over the episodes, "
        "all drawn from these images: others would add to it. The classes are those of the data set, not ones kept "
        "back from training",
        "retrieval": "cosine; queries = test split, searched = training split, right = same class; mean average "
        f"precision over the whole ranking; recall@k = share of queries with a right answer among the first k "
        f"({', '.join(map(str, retrieval.AT))}), precision@k = share of right answers there; of equal cosines the "
        "wrong answer comes first",
    }


def of_fine_tuning(material: Material, epochs: int, flip: float) -> str:
    """The protocol of fine-tuning."""
    section = fine_tune.OPTIMIZER
    return (
        f"the whole network and a linear classifier, {epochs} epochs on all {len(material.bank)} training labels, for "
        f"each encoder alike; AdamW, learning rate {section.lr:g} fixed beforehand, weight decay "
        f"{section.weight_decay:g}, cosine after {fine_tune.WARMUP:.0%} warm-up, batches of "
        f"{fine_tune.batch_size(len(material.bank))}; views: random resized crops of {fine_tune.CROP[0]:.0%} to "
        f"{fine_tune.CROP[1]:.0%} of the clean image, flipped with probability {flip:g}; nothing is chosen: last epoch "
        "and not the best, the test split is read once after it"
    )


def notes(source: DataSource, material: Material, everything: bool, fine_tuned: bool) -> list[str]:
    """What a reader must know before trusting or missing a figure."""
    reason = _unscorable(source, material)
    if reason:
        missing = ["k-NN", "linear probe", *(["few labels", "few-shot", "retrieval"] if everything else [])]
        missing += ["fine-tuning"] if fine_tuned else []
        return [reason, f"Not measured for that reason: {', '.join(missing)}."]
    few = [k for k in KNN if k > len(material.bank)]
    found = [f"k = {k} is more than the bank's {len(material.bank)} images; all of them vote." for k in few]
    if len(source.skipped):
        found.append(f"{len(source.skipped)} unreadable files of {source.name} were skipped.")
    if everything:
        assert material.bank_labels is not None and material.query_labels is not None
        found += left_out(material.bank_labels, material.query_labels)
    return found


def _unscorable(source: DataSource, material: Material) -> str | None:
    """Why there is no accuracy; None where there is."""
    if material.classes == 1:
        return (
            f"All images of {source.name} have the same label: every answer is right, so an accuracy would be 100 % "
            "for any encoder and mean nothing. A folder needs one sub-folder for each of at least two classes."
        )
    if material.bank_labels is None:
        return (
            f"{source.name} has no labels, and accuracy needs labels. Measure on a labelled set with --on, or judge "
            "the neighbours in the report."
        )
    if material.query_labels is None:
        return (
            f"{source.name} has labels but no test split ({source.split_note}), so there is nothing to measure "
            "accuracy on. Hold some images out: data.test_fraction=0.2"
        )
    return None


def of_rows(rows: Sequence[Representation], test_images: int) -> list[str]:
    """What the figures themselves call for: features that are no numbers, and training that gained nothing."""
    broken = [row.name for row in rows if row.diagnostics and not math.isfinite(row.diagnostics.rank_me)]
    found = [
        f"Features of the {name} are not finite numbers. They count as zero, so that its accuracies mean nothing."
        for name in broken
    ]
    measured = gain(rows, test_images)
    if measured is not None and not measured.clear:
        found.append(f"{NO_GAIN}: k-NN {measured.figures}. Train longer, on more images or with other views.")
    return found
