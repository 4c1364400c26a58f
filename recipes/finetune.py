"""Fine-tune any checkpoint on pictures of your own, and see what that costs on what the model could do before.

Command:   python recipes/finetune.py -m mobileclip_s2.pt --data flowers/ --retention-tasks imagenet-val/
           torchrun --nproc-per-node 8 recipes/finetune.py --batch-norm synchronised --batch-size 1024 ...
Try it:    python recipes/finetune.py --tiny
Hardware:  a GPU for the published models; the tiny one trains on two CPU cores
Time:      --tiny takes 17 s of one core
Result:    outputs/finetune: report.md, tradeoff.png, finetuned.safetensors and, averaged with the original,
           interpolated.safetensors
Source:    Wortsman et al., "Robust fine-tuning of zero-shot models" (arXiv 2109.01903)

Batch norms stay as pretraining left them, the loss shares its targets among pictures of one class, and both models and
those between them are tested on the new task and on the old ones. docs/finetuning.md says what each choice is for.
"""

from mobileclip.recipes import run_recipe
from mobileclip.training.finetuning.run import FinetuneSpec

RUN: FinetuneSpec = FinetuneSpec()

if __name__ == "__main__":
    run_recipe(RUN)
