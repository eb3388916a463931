"""What the page of results says around its tables."""

HEAD = """# Network Slimming, measured

Written by `python benchmarks/slimming_results.py report` from what `run` has stored; the method is in [training.md](training.md).

    python benchmarks/slimming_results.py run --data DIR            # everything; goes on where it was stopped
    python benchmarks/slimming_results.py run --data DIR curve half # some studies
    python benchmarks/slimming_results.py report                    # this page

Images are CIFAR-10 stored as JPEG, and MNIST. Accuracies on JPEG compare with each other and with the controls here, not with published ones.
Every network is trained by the same loop: SGD, batches of 128 unless told, one cosine, shifted and mirrored images, the same images in the same
order for all networks of a seed. A *control* is the whole network, trained as long without penalty. Accuracies after training are of 4,000 test
images (MNIST: all 10,000; the paper's networks: 500), those before it of the first 1,000. One standard error is about 0.6 points at 85 % and
4,000 images; differences between networks that saw the same images are less noisy than that. Behind means stand the least and the most of the
seeds. These trainings are a few hundred steps long, where the paper has 60,000: they show orders and differences, not what a network can reach.
"""

NOTES = {
    "cuts": """The pretrained network, slimmed in one shot, without sparse training and without any training after it; accuracy on the
first 2,000 test images. fxprune gets `Budget(macs=...)`; torch-pruning's ratio is bisected to the same MACs. *L1* is `l1:mean`.
*Fisher* and *refit* (`score.fisher`, `reconstruct.repair`) look at 640 training images; so do the statistics that are estimated anew.
torch-pruning 1.6 fails on this network as it is (in the next forward: shortcuts padded with zero channels make its streams of three
widths one group), so the layers that make the streams are on its list of ignored layers; fxprune may cut them, and rarely does.

Gammas and norms of a network that was trained without a penalty say little, in any tool; scores that look at data say more; a refit of
the weights is worth more than any choice of channels.

Where fxprune loses: plain gamma and L1 at 20 and 40 % fewer MACs, to torch-pruning's group norm. A budget keeps the largest *sum* of
scores, and a sum prices the last channels of a layer like its first, so the layers whose channels cost most go down to their floors: 2 of
16 channels are left in each block of the first stage. One threshold, as torch-pruning has it, does not do that. The normalisation `log`
([scores.md](scores.md#across-layers)) was made after this was seen: it keeps the largest *product* of the layers' kept shares.
""",
    "cuts-vgg": """The same for the network of [results-reconstruct.md](results-reconstruct.md), a chain, where nothing is on a list of ignored
layers. What plain sums do to a budget is worst here: at 40 % fewer MACs gamma leaves 2 channels of 16 in the second layer and 4
of 32 in the fourth; at 20 %, half of the accuracy is gone. `gamma:log` and `l1:log` are ahead of torch-pruning down to 40 %
fewer MACs; at 60 %, group norm with one threshold for all layers is ahead of both.
""",
    "curve": """The same networks, and how they do after 100 steps of 128 images at a learning rate of 0.05. *distillation*: nine tenths of the loss
come from the control, fine-tuned before (`train.distillation`).

One seed, one level so far. A plain sum of gammas under a budget leaves a network that does not even learn in these steps (28.6 %); `gamma:log`
gives 62.6 %, six points more than torch-pruning's BNScale. Its group norm (64.4 %) is ahead of both; plain L1 is eight points behind it.
""",
    "half": """Fine-tuning with an L1 penalty on gamma, `slim` to half of the MACs, fine-tuning; the control gets all these steps in one
cosine, at the rate that was the better one for it. ResNet-20: 100 + 200 steps, ResNet-56: 60 + 150. *sparse* is the network
after the first part, unpruned.

The aim, one point below the control at most, is missed by far in so few steps. The control gains five to six points in its
steps, because it learns what JPEG does to images it knows; the slim network has to regain what half of its MACs did, too.
`--longer 7` trains about five epochs. Refit and distillation start at 77 % instead of 18 % and end three points ahead of gamma
alone. A rate of 0.05 spends most of that start.
""",
    "mlp": """784-500-300-10 with batch norms: 3 epochs with sparsity, `Budget(params=0.156)`, 3 epochs of fine-tuning; the control trains for
6. The paper's errors are those of its table 1.

The size is the paper's, the aim of +0.1 points over the own baseline is missed. Six epochs are too few: the penalty has not
emptied channels yet (the cut alone costs eight points), and a stronger one empties them at the price of accuracy. Distillation
and a global ratio instead of the budget changed nothing beyond the noise of a seed. `--longer 10` trains ten times as long.
""",
    "passes": """VGG-16 of a quarter of the width, from scratch: 200 steps with sparsity, half of all channels and at most half
of a layer (`slim(model, 0.5, floor=0.5)`), 150 steps of fine-tuning; five times.
""",
    "paper": """150 steps of 16 images of sparse training, from scratch, of what the paper does in some 125,000 steps of 64. So that gammas
separate in so few steps they begin at 0.05 (paper: 0.5), and the strength is 1e-3 (paper: 1e-4 for VGG, 1e-5 otherwise): a
gamma that nothing holds falls by strength times the sum of the rates over (1 - momentum), 0.075 here. (From 0.5, with a
strength of 1.3e-2, all gammas of VGG-19 ended at zero.) Accuracies are of 500 test images, say no more than that a cut did or
did not break the network, and do not compare with the paper's; sizes are exact. *selection* is the paper's rule (`floor=0`,
`absorb=False`), *coupled* the default of `slim`.

What differs from the paper, and why. VGG-19 has more parameters than it needs in its wide last layers, and loses them here as
there; but after so few steps small gammas are in every layer (at 70 %, 35 of 64, 55 of 128 and 86 of 256 channels stay in the
second, fourth and sixth), also where most of the MACs are, so MACs go faster than in the paper. In DenseNet-40 the same holds,
and liveness removes what no reader keeps, which the reference scripts leave in (with equal gammas:
[selection.md](selection.md#sizes-of-the-papers-networks)). At one ratio the coupled layout is the smaller one, and its cut the
rougher. The table there has the counts for gammas drawn at random, of all three networks.
""",
    "digits": """From `network_slimming.py --case digits` and `--case digits-proximal` (`--json`): 30 epochs with a strength of 0.02 (proximal:
0.2), `slim(model, 0.6)` with absorption, 6 epochs of fine-tuning. The default tests (`tests/unit/train/test_digits.py`) hold
that the cut loses one point at most on three seeds, and that proximal steps leave channels that are exactly zero and go with
the same logits to 1e-5.
""",
    "draws": """Parameters and FLOPs of one draw, counted by `python -m benchmarks.selection --seeds 1 --json ...`. [selection.md](selection.md) has
three draws, and says what *uniform* and *levels* are. In brackets: the reference scripts fail on this draw.
""",
}
