"""What the page of results says around its tables."""

HEAD = """# Network Slimming, measured

Written by `python benchmarks/slimming_results.py report` from what `run` has stored; the method is in [training.md](training.md).

    python benchmarks/slimming_results.py run --data DIR            # everything; goes on where it was stopped
    python benchmarks/slimming_results.py run --data DIR curve mlp   # some studies
    python benchmarks/slimming_results.py report                    # this page

Images are CIFAR-10 stored as JPEG, and MNIST. Accuracies on JPEG compare with each other and with the controls here, not with published
ones. Every network is trained by the same loop: SGD, batches of 128 unless told, one cosine, shifted and mirrored images, the same images
in the same order for all networks of a seed. Forward passes of trainings on CIFAR-10 run in bfloat16 where `torch.autocast` would, of all
networks alike; measurements are in single precision. A *control* is the whole network, trained as long without penalty. Accuracies after
training are of 4,000 test images (MNIST: all 10,000; the paper's networks: 1,000), those before it of the first 1,000. One standard error
is about 0.6 points at 85 % and 4,000 images; differences between networks that saw the same images are less noisy than that. Behind means
stand the least and the most of the seeds. These trainings have some hundred to four thousand steps, where the paper has 60,000: they show
orders and differences, not what a network can reach.
"""

NOTES = {
    "cuts": """The pretrained network, slimmed in one shot, without sparse training and without any training after it; accuracy on the
first 2,000 test images. fxprune gets `Budget(macs=...)`; torch-pruning's ratio is bisected to the same MACs. *L1* is `l1:mean`.
*Fisher* (`score.fisher`) looks at 640 training images, as do the statistics that are estimated anew, and *refit* (`reconstruct.repair`) at
2,560; it leaves the classifier as it is.
torch-pruning 1.6 fails on this network as it is (in the next forward: shortcuts padded with zero channels make its streams of three
widths one group), so the layers that make the streams are on its list of ignored layers; fxprune may cut them, and rarely does.

Gammas and norms of a network that was trained without a penalty say little, in any tool; scores that look at data say more; a refit of
the weights is worth more than any choice of channels.

Where fxprune loses: plain gamma and L1 at 20 and 40 % fewer MACs, to torch-pruning's group norm. A budget keeps the largest *sum* of
scores, and a sum prices the last channels of a layer like its first, so the layers whose channels cost most go down to their floors: 2 of
16 channels are left in each block of the first stage. One threshold, as torch-pruning has it, does not do that. The normalisation `log`
([scores.md](scores.md#across-layers)) was made after this was seen: it keeps the largest *product* of the layers' kept shares.
""",
    "cuts-vgg": """The same for the network of [results-reconstruct.md](results-reconstruct.md), a chain, where nothing is on a list of
ignored layers. What plain sums do to a budget is worst here: at 40 % fewer MACs gamma leaves 2 channels of 16 in the second layer and 4
of 32 in the fourth; at 20 %, half of the accuracy is gone. `gamma:log` and `l1:log` are ahead of torch-pruning down to 40 % fewer MACs;
at 60 %, group norm with one threshold for all layers is ahead of both.
""",
    "curve": """The same networks, and how they do after 150 steps of 128 images at a learning rate of 0.05. *distillation*: nine tenths of
the loss come from the control, fine-tuned before (`train.distillation`).

A look at the data (Fisher), a refit and distillation are worth more than any score of the weights, and the more so the more goes: 10 points
ahead of torch-pruning's better pruner at 60 % fewer MACs, 18 at 80 %. Among scores of the weights `l1:log` and torch-pruning's group norm
lead: the same down to 40 % fewer MACs, the former by four points at 60 %, the latter by one at 80 %. `gamma:log`, the default of `slim` with a
budget here, is ahead of torch-pruning's BNScale at every level, by 0.2 to 4 points, and behind group norm, by three points at 60 % and four at
80 %. Plain gamma under a budget falls behind even random channels at 60 %. The network was never trained with a penalty.

The refit leaves the classifier alone because of what happened when it did not. No norm follows there, and least squares gave its weights eight times
their norm at 80 % fewer MACs. The fit was better, and the training at this rate failed: 22 %, where it gives 63 % now.
""",
    "half": """Several ways to half of the MACs, with a control that is fine-tuned for as many steps in one cosine at the rate that was the
better one for it. ResNet-20: 1,950 steps (five epochs), and twice as many; ResNet-56: 1,170. *cut first*: the pretrained network is cut at
once and gets all steps, in an order of images of its own. Otherwise the first fifth is training with an L1 penalty on gamma (*sparse* is the
network after it, unpruned), and the cut comes then. Slim networks learn from the control where *distillation* is said; its own training is not
counted as theirs. That the classifier is not refitted, and that the scope is global, was chosen by trainings of 400 steps and the test images 4,000
to 8,000, which no number here is of (85.4 % with all that, 85.0 with the classifier refitted, 84.7 with uniform widths, 84.5 at a rate of 0.1),
after ten epochs with a refitted classifier had missed the aim by a tenth of a point.

The aim is one point below the control at most. ResNet-56 meets it (0.83 points in the mean of two seeds), and ResNet-20 does after ten
epochs (0.88); after five, of which the first was sparse training, it is 1.12 points below. The control gains eight points, because it learns what
JPEG does to images it knows; the slim network has to regain what half of its MACs did, too.
""",
    "mlp": """784-500-300-10 with batch norms: 15 epochs with sparsity, `Budget(params=0.156)` and plain gammas, 15 epochs of fine-tuning;
the control trains for 30. *distillation*: the slim network learns from the control. That, and the score, were chosen on the first seed's
test images; the other seeds came after. The paper's errors are those of its table 1.

At the paper's size the slim network is 0.08 points worse than the control in the mean, within the aim of 0.1 (one of three seeds is not),
and better than the paper's. Without distillation it misses it: what the cut takes away (from 1.4 to
17 % error) does not all come back from labels alone.
""",
    "passes": """VGG-16 of a quarter of the width, from scratch: 500 steps with sparsity, a cut, 300 steps of fine-tuning; five times. The
cut is the paper's, and what `fxprune train --passes 5` does: what is below the median of all gammas goes, but at most half of a layer.

After three passes, with a twentieth of the parameters and a fifth of the MACs, the network is better than after the first one: it has been
trained for longer. From the fourth pass on accuracy falls. The control, one cosine of all steps without a penalty, stays nine points ahead of
the best: short cosines with a strong penalty are no way to train a network.
""",
    "paper": """600 steps of 32 images of sparse training, from scratch, of what the paper does in some 125,000 steps of 64. So that gammas
separate in so few steps they begin at 0.2 (paper: 0.5), and the strength is 1e-3 (paper: 1e-4 for VGG, 1e-5 otherwise): a gamma that
nothing holds falls by strength times the sum of the rates over (1 - momentum), 0.3 here. *Fine-tuned*: 100 more steps, of the slim
networks and of the unpruned one. Accuracies are of 1,000 test images (one standard error is 1.5 points), and do not compare with the
paper's; sizes are exact. *selection* is the paper's rule (`floor=0`, `absorb=False`), *coupled* the default of `slim`.

What the cuts do to accuracy is what the paper says: after as little fine-tuning the slim networks are where the unpruned one is, but for
the roughest cuts (VGG-19 and coupled DenseNet-40 at 70 %), and 40 and 60 % in the selection layout cost nothing even before it, on the
two networks where so many gammas are zero.

What differs from the paper's sizes, and why. Trained gammas differ: after so few steps more than half of them are zero, in every layer.
VGG-19 has more parameters than it needs in its wide last layers, and loses them here as there, but small gammas are also in its first
layers, where most of the MACs are, so MACs go faster than in the paper. In DenseNet-40 and ResNet-164 the same holds, and liveness
removes what no reader keeps, which the reference scripts leave in (with equal gammas:
[selection.md](selection.md#sizes-of-the-papers-networks)). At one ratio the coupled layout is the smaller one by far, and its cut the
rougher: a ratio of its channels is one of whole streams. The table below has the counts for gammas drawn at random, of all three
networks.
""",
    "digits": """From `network_slimming.py --case digits` and `--case digits-proximal` (`--json`): 30 epochs with a strength of 0.02
(proximal: 0.2), `slim(model, 0.6)` with absorption, 6 epochs of fine-tuning. The default tests (`tests/unit/train/test_digits.py`) hold
that the cut loses one point at most on three seeds, and that proximal steps leave channels that are exactly zero and go with the same
logits to 1e-5.
""",
    "draws": """Parameters and FLOPs of one draw, counted by `python -m benchmarks.selection --seeds 1 --json ...`.
[selection.md](selection.md) has three draws, and says what *uniform* and *levels* are. In brackets: the reference scripts fail on this
draw.
""",
}
