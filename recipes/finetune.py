"""Fine-tune any checkpoint on your own images, and measure the change on earlier tasks.

Command:   python recipes/finetune.py -m mobileclip_s2.pt --data flowers/ --retention-tasks imagenet-val/
           torchrun --nproc-per-node 8 recipes/finetune.py --batch-norm synchronised --batch-size 1024 ...
Try it:    python recipes/finetune.py --tiny
Hardware:  a GPU for the published models; two CPU cores for the tiny model
Time:      --tiny takes 17 s on one core
Result:    outputs/finetune: report.md, tradeoff.png, finetuned.safetensors, and interpolated.safetensors, the average
           of the original and the fine-tuned model
Source:    Wortsman et al., "Robust fine-tuning of zero-shot models" (arXiv 2109.01903)

By default, batch norms stay frozen; all images of a class share the targets of the loss. The recipe tests the original
model, the fine-tuned model and interpolations of the two models on the new task and on the old tasks.
docs/finetuning.md explains each choice.
"""

from mobileclip.recipes import run_recipe
from mobileclip.training.finetuning.run import FinetuneSpec

RUN: FinetuneSpec = FinetuneSpec()

if __name__ == "__main__":
    run_recipe(RUN)
