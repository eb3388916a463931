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
""",
    "half": """Fine-tuning with an L1 penalty on gamma, `slim` to half of the MACs, fine-tuning; the control gets all these
steps in one cosine. ResNet-20: 100 + 200 steps, ResNet-56: 60 + 150. *sparse* is the network after the first part, unpruned.
""",
    "mlp": """784-500-300-10 with batch norms, 3 epochs with sparsity, `Budget(params=0.156)`, 3 epochs of fine-tuning; the
control trains for 6. The paper's errors are those of its table 1.
""",
    "passes": """VGG-16 of a quarter of the width, from scratch: 200 steps with sparsity, half of all channels and at most half
of a layer (`slim(model, 0.5, floor=0.5)`), 150 steps of fine-tuning; five times.
""",
    "paper": """""",
    "draws": """""",
    "digits": """""",
}
