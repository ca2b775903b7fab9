"""All that one GPU can say of pfb in nine minutes, by one command: whole training steps, judging
alone, trainings on CIFAR-10. Needs PyTorch, torchvision, Pillow and, for GPT-2, transformers.

``python -m studies gpu``, or ``python -m studies.gpu`` where the command line's packages are
missing. The images travel as one file of compressed JPEG bytes, 19 MB, which ``--pack FOLDER``
writes beforehand; as arrays they would be 184 MB.
"""

from studies.gpu.command import run
from studies.gpu.settings import GpuConfig

__all__ = ["GpuConfig", "run"]
