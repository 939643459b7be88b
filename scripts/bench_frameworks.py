"""The same epoch of distillation as a user would write it with Lightning or with torchdistill (extra `bench`)."""

import logging
import warnings
from collections.abc import Callable

import torch
from measure import PIXELS, Case
from torch import Tensor
from torch.utils.data import DataLoader, Dataset
from torchvision.transforms import v2

from kdx.losses.hinton import KnowledgeDistillationLoss


class Pictures(Dataset[tuple[Tensor, int]]):
    """The case's images one at a time, cropped and flipped by torchvision as its tutorials do."""

    def __init__(self, case: Case) -> None:
        split = case.split()
        self.images, self.labels = split.images, split.labels.tolist()
        steps = [v2.RandomCrop(case.size, padding=case.size // 8), v2.RandomHorizontalFlip()]
        steps += [v2.ToDtype(torch.float32, scale=True), v2.Normalize(PIXELS.mean, PIXELS.std)]
        self.transform = v2.Compose(steps)

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        return self.transform(self.images[index]), self.labels[index]


def lightning_epoch(case: Case) -> Callable[[], None]:
    import lightning

    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    class Distillation(lightning.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.student, self.teacher = case.network(case.student), case.network(case.teacher).requires_grad_(False)
            self.objective = KnowledgeDistillationLoss(4.0, 0.7)

        def training_step(self, batch: tuple[Tensor, Tensor], number: int) -> Tensor:
            images, labels = batch
            self.teacher.eval()
            with torch.no_grad():
                taught = self.teacher(images).float()
            logits = self.student(images).float()
            loss = self.objective(logits, taught, labels)
            self.log("loss", loss, prog_bar=True)
            self.log("accuracy", (logits.argmax(1) == labels).float().mean(), on_epoch=True)
            return loss

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.AdamW(self.student.parameters(), fused=True)

    module, loader = Distillation(), DataLoader(Pictures(case), case.batch_size, shuffle=True)

    def epoch() -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            trainer = lightning.Trainer(
                max_epochs=1,
                accelerator="gpu" if case.device == "cuda" else "cpu",
                devices=1,
                precision="bf16-mixed" if case.half is torch.bfloat16 else "32-true",
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=False,
            )
            trainer.fit(module, loader)

    return epoch


def torchdistill_epoch(case: Case) -> Callable[[], None]:
    from torchdistill.core.distillation import get_distillation_box

    logging.getLogger("torchdistill").setLevel(logging.ERROR)
    whole = {"path": ".", "io": "output"}
    loss = {f"{who}_module_{key}": value for who in ("student", "teacher") for key, value in whole.items()}
    config = {
        "num_epochs": 10**6,
        "train_data_loader": {
            "dataset_id": "train",
            "sampler": {"class_or_func": torch.utils.data.RandomSampler, "kwargs": {}},
            "kwargs": {"batch_size": case.batch_size, "num_workers": 0},
        },
        "teacher": {"sequential": [], "requires_grad": False, "forward_proc": "forward_batch_only"},
        "student": {"sequential": [], "requires_grad": True, "forward_proc": "forward_batch_only"},
        "optimizer": {"key": "AdamW", "kwargs": {"lr": 1e-3, "fused": True}},
        "criterion": {
            "key": "WeightedSumLoss",
            "kwargs": {
                "model_term": {"weight": 0},
                "sub_terms": {
                    "kd": {
                        "weight": 1.0,
                        "criterion": {"key": "KDLoss", "kwargs": {**loss, "temperature": 4.0, "alpha": 0.3}},
                    }
                },
            },
        },
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        box = get_distillation_box(
            *(case.network(case.teacher), case.network(case.student), {"train": Pictures(case)}, config),
            *(torch.device(case.device), None, False, 1),
        )
    number = 0

    def epoch() -> None:
        nonlocal number
        box.pre_epoch_process(epoch=number)
        for images, labels, extra in box.train_data_loader:
            images, labels = images.to(case.device), labels.to(case.device)
            with case.precision().autocast():
                loss = box.forward_process(images, labels, extra)
            box.post_forward_process(loss=loss)
        number += 1

    return epoch
