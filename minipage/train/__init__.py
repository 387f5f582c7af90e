"""Train a small GPT on any text file: `python -m minipage.train TEXT --out DIR`. Needs PyTorch.

The network is `minipage.model.gpt2.GPT2`, the very code that the engine runs, fed with PyTorch tensors; only attention
is swapped, for one over whole windows of text. So there is one GPT in this project, and this is how it learned.

    text ─▶ first 90 % ─▶ BPE tokenizer ─▶ random windows ─▶ GPT ─▶ cross-entropy ─▶ AdamW ─▶ running average of weights
            last 10 %  ─▶ validation loss, in nats per character (so that tokenizers can be compared)

A megabyte of text is soon known by heart. Three things hold that back: weights are dropped at random (DropConnect, Wan
et al. 2013); so are merges of the tokenizer, that the same text may come in many spellings (BPE-dropout, Provilkov et
al., arXiv 1910.13267); and what is kept is a running average of the weights, from where it was best.

DIR gets a model in the Hugging Face GPT-2 layout (fp16), `training.json` with all settings and the loss, and
`checkpoint.pt`: stop at any time, and the same command goes on from there. All random draws follow from the seed and
the step, so a run can be repeated, in one go or not: bit for bit on one CPU, and up to rounding on a GPU.
"""
