"""Checks of a few steps of training; what they do is in modules that import torch."""

from __future__ import annotations

from clf.checks import Check, at
from clf.testing.subject import Subject

CHECKS: tuple[Check[Subject], ...] = (
    Check(
        name="trains",
        looks_at="Six steps: each loss is one finite number with a gradient, what is logged is finite, and so are the "
        "weights at the end.",
        why="A run whose loss or weights are not finite ends with an error, and a metric that is no number spoils the "
        "records and the report.",
        remedy="Return a scalar tensor that depends on the trained parameters, or clf.StepOutput(loss, metrics), from "
        "training_step. Guard logarithms, divisions and square roots against zero (torch.clamp_min, F.normalize), and "
        "log .detach()ed scalars.",
        run=at("clf.testing.learning:trains"),
        needs=("defaults",),
    ),
    Check(
        name="odd batch",
        looks_at="Three steps each with batches of 9, 7 and 2 images.",
        why="Users choose the batch by their memory and their data, not by what an algorithm divides well; code that "
        "counts on an even number stops, or silently leaves images out.",
        remedy="Take the number of images from len(batch) and never from a constant. If the method cannot do with a "
        "size, raise clf.ConfigError in __init__ with a sentence that names train.batch_size and a value that works.",
        run=at("clf.testing.learning:odd_batch"),
        needs=("trains",),
    ),
    Check(
        name="one channel",
        looks_at="Three steps on grey images, and encoder() on two of them.",
        why="X-rays, microscopy, digits: much data has one channel, and clf trains on it without being told.",
        remedy="Take the number of channels from self.data.channels, in networks, buffers and recipes: "
        "clf.simclr_recipe(size, channels) leaves out the colour jitter that grey images cannot have.",
        run=at("clf.testing.learning:one_channel"),
        needs=("trains",),
    ),
    Check(
        name="float64",
        looks_at="Three steps with train.precision=fp64, whose loss must be in float64.",
        why="Proofs such as that of equal ranks compare trainings in float64; one that computes its loss in float32 "
        "hides errors a hundred million times larger.",
        remedy="Make tensors with the type and device of others: torch.zeros_like(z), z.new_zeros(n), "
        "torch.randn(...).to(z). In place of z.float() write z.to(torch.promote_types(z.dtype, torch.float32)), which "
        "lifts 16-bit numbers and leaves float64 as it is.",
        run=at("clf.testing.learning:float64"),
        needs=("trains",),
    ),
    Check(
        name="bf16",
        looks_at="Four steps under autocast to bfloat16, on the CPU; buffers must keep their types.",
        why="On GPUs clf trains in bfloat16 unless it is told otherwise: there the outputs of networks have another "
        "type than the weights.",
        remedy="Give what is stored the type of its store: self.queue.copy_(z.to(self.queue)). Compute what needs "
        "range or precision (logarithms, exponentials, small differences) inside torch.autocast(z.device.type, "
        "enabled=False), on z.to(torch.promote_types(z.dtype, torch.float32)).",
        run=at("clf.testing.learning:bf16"),
        needs=("trains",),
    ),
    Check(
        name="parameters move",
        looks_at="Up to twelve steps without weight decay: each parameter of each group must get a gradient that is "
        "not zero and must change, and no trainable parameter may be left out of all groups.",
        why="A head that is never trained makes a method look like a worse one, and nothing else tells of it.",
        remedy="Let the loss depend on the parameter without .detach() or torch.no_grad() between. Put every trained "
        "module into parameter_groups(), step groups besides 'main' by ctx.minimize(group, loss), and mark what is "
        "not trained, such as a momentum encoder, by .requires_grad_(False).",
        run=at("clf.testing.learning:parameters_move"),
        needs=("trains",),
    ),
    Check(
        name="views matter",
        looks_at="The loss in float64 with the views of each image as they are, and with the second and further views "
        "exchanged for those of other images.",
        why="A contrastive loss learns from which views are of one image; if these can be exchanged at no cost, it "
        "learns something else.",
        remedy="Pair row i of one view with row i of the other; look for a view used twice, a mean over the batch "
        "before the comparison, and chunk() in another order than torch.cat(). A method that needs one view returns "
        "one recipe from views().",
        run=at("clf.testing.sensitivity:views_matter"),
        needs=("trains", "float64"),
    ),
    Check(
        name="no labels",
        looks_at="Six steps with the labels of the data set, with permuted ones and without any: metrics and weights "
        "must have the same bits.",
        why="What clf measures is learnt without labels; a method that reads them measures something else, and stops "
        "on data that have none.",
        remedy="Use what Batch and Context offer and no attribute that begins with an underscore. Diagnostics that "
        "need labels read them from a file that a setting of the method names.",
        run=at("clf.testing.sensitivity:no_labels"),
        needs=("trains",),
    ),
    Check(
        name="chunks",
        looks_at="Losses and gradients of three steps in float64, on a network without batch norm, with "
        "train.chunk_size=5 and without.",
        why="Large batches are trained on small memory by running the network on a few rows at a time; that is right "
        "only if the method sees the network's outputs as a whole.",
        remedy="Call self.backbone(x), as a whole and not a part of it, and take from it what it returns: hooks inside "
        "the network see one chunk at a time. Compute on all rows after it.",
        run=at("clf.testing.equalities:chunks"),
        needs=("trains", "float64"),
    ),
    Check(
        name="compile",
        looks_at="Six steps with the network traced by torch.compile: loss and gradients of the first as without, and "
        "no new graph in each step. The graphs are run as they are, which needs no compiler.",
        why="On GPUs clf compiles the network unless it is told otherwise; a network that is compiled anew for every "
        "step takes minutes for what takes milliseconds.",
        remedy="Call the backbone with one number of rows in every step, and do not change its attributes between "
        "steps. What must see a varying number of rows runs under torch.compiler.set_stance('force_eager').",
        run=at("clf.testing.equalities:compiled"),
        needs=("trains",),
    ),
)
