r"""Fine-tune a captioner on a small set of captions: MSCOCO, DOCCI, DCI, or your own table.

Command:   python recipes/finetune_coca.py context_77 --initial-weights coca.safetensors --data captions.jsonl
Try it:    python recipes/finetune_coca.py context_77 --tiny
Hardware:  one GPU: a step of 128 pairs in micro-batches of 32 takes 20 GiB (77 positions), 23 GiB (128) or 29 GiB (256)
Time:      estimates: 51 (77 positions), 58 (128) or 76 (256) A100 hours for 12 million pairs, at the speed of ViT-B/16
Result:    published as mobileclip2_coca_dfn2b_s13b_recap-coco-30k_s12m_context{77,128,256}; not trained here
Source:    MobileCLIP2 (arXiv 2508.20691) for samples seen and contexts; open_clip's fine-tuning of CoCa on MSCOCO for
           the batch size, the learning rate and the training without the contrastive loss

Rows:
    context_77   Fine-tune with texts of 77 positions
    context_128  Fine-tune with texts of 128 positions
    context_256  Fine-tune with texts of 256 positions
"""

from mobileclip.recipes import finetuning_run, run_recipe
from mobileclip.training import RunSpec

ROWS: dict[str, RunSpec] = {f"context_{n}": finetuning_run(n) for n in (77, 128, 256)}

if __name__ == "__main__":
    run_recipe(ROWS)
