r"""Train the captioner of MobileCLIP2, a CoCa with ViT-L/14, on image-text pairs.

Command:   torchrun --nproc-per-node 8 recipes/train_coca.py context_77 \
               --data 'DFN-2B/{00000000..00099999}.tar'
Try it:    python recipes/train_coca.py context_77 --tiny
Hardware:  8 GPUs, each with 176 micro-batches of 64 in 36 GiB (77 positions), 41 GiB (128) or 53 GiB (256). Any number
           of processes that divides the batch of 90,112 works
Time:      13 billion pairs seen; estimates: 55,000 (77 positions), 62,700 (128) or 82,200 (256) A100 hours, at the
           speed of ViT-B/16
Result:    published as mobileclip2_coca_dfn2b_s13b_context77; not trained here
Source:    MobileCLIP2 (arXiv 2508.20691) for data and samples seen; open_clip's coca_ViT-L-14 (laion2B-s13B-b90k) for
           the model, the batch size and the learning rate

Rows:
    context_77   Train with texts of 77 positions
    context_128  Train with texts of 128 positions
    context_256  Train with texts of 256 positions
"""

from mobileclip.recipes import coca_run, coca_vit_l14, run_recipe
from mobileclip.training import RunSpec

ROWS: dict[str, RunSpec] = {f"context_{n}": coca_run(coca_vit_l14(n)) for n in (77, 128, 256)}

if __name__ == "__main__":
    run_recipe(ROWS)
