"""Contrastive representation distillation (1910.10699): an image's two embeddings against those of other images."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from kdx.errors import KdxError
from kdx.losses.draws import draw_others
from kdx.losses.objective import Facts, Lesson, Objective, Words, total
from kdx.losses.pairs import one_pair
from kdx.method_numbers import check_numbers
from kdx.models.features import Outputs

EPS = 1e-7
UNSET = torch.inf  # of log Z, before the first batch
WHOLE_BANK = 64  # times as many rows as are compared, up to which it is cheaper to compare with all


def contrast_loss(scores: Tensor, log_z: Tensor, train_size: int) -> Tensor:
    """Noise-contrastive estimation of scores (B, 1 + K), the positive first: mean over images, summed over scores.

    P = exp(score) / Z is compared with K draws of probability 1 / train_size: -log P/(P + K/n) of the positive, and
    -log (K/n)/(P + K/n) of each negative.
    """
    noise = (scores.shape[1] - 1) / train_size
    log_p = scores - log_z
    log_sum = torch.logaddexp(log_p, log_p.new_tensor(math.log(noise + EPS)))
    positive = log_sum[:, 0] - log_p[:, 0]
    negatives = log_sum[:, 1:] - math.log(noise)
    return (positive + negatives.sum(dim=1)).mean()


def moved(rows: Tensor, seen: Tensor, momentum: float) -> Tensor:
    """Rows of a bank (B, dim) moved towards what was seen, of length 1 again."""
    return F.normalize(momentum * rows + (1 - momentum) * seen)


def similarities(bank: Tensor, rows: Tensor, seen: Tensor) -> Tensor:
    """Inner products (B, K) of what was seen (B, dim) with some rows (B, K) of a bank (N, dim).

    A product with the whole bank reads it once, where picking rows copies them for every image: 49 against 23 ms of one
    core at B = 64, N = 45,000 and K = 1,024, forward and backward; 31 against 1 at N = 1,257.
    """
    if len(bank) <= WHOLE_BANK * rows.shape[1]:
        return (seen @ bank.clone().T).gather(1, rows)  # a copy: the bank moves before the backward pass reads it
    return (bank[rows] @ seen[:, :, None]).squeeze(2)


class Embedding(nn.Module):
    """Features (B, D) in `dim` dimensions, of length 1."""

    def __init__(self, features: int, dim: int) -> None:
        super().__init__()
        self.linear = nn.Linear(features, dim)

    def forward(self, features: Tensor) -> Tensor:
        return F.normalize(self.linear(features))


class CRD(Objective):
    """The contrast both ways: the student's embedding with a bank of the teacher's, and the reverse.

    As published: cross-entropy with weight 1, this with 0.8, 128 dimensions, temperature 0.07, momentum 0.5, and 16384
    negatives of other classes; here they are any other images, and as many as asked for, at most the training images
    but one. A step takes batch x train_size floats a network (64 images of 45,000: 12 MB), above 64 x negatives images
    batch x negatives x dim, and the two banks are in every checkpoint (train_size x dim floats each). All tasks. Z is
    set by the first batch.
    """

    relates = False
    remembers = True
    bank_student: Tensor
    bank_teacher: Tensor
    log_z: Tensor
    salt: Tensor

    def __init__(
        self,
        layers: Words = "pooled",
        teacher_layers: Words | None = None,
        dim: int = 128,
        negatives: int = 1024,
        temperature: float = 0.07,
        momentum: float = 0.5,
    ) -> None:
        super().__init__()
        check_numbers(dim=dim, negatives=negatives, temperature=temperature, momentum=momentum)
        self.look_at(layers, teacher_layers)
        self.dim, self.negatives = dim, negatives
        self.temperature, self.momentum = temperature, momentum

    def prepare(self, facts: Facts) -> None:
        super().prepare(facts)
        if facts.train_size < 2:
            raise KdxError("negatives: an image is compared with others; the training split has only one")
        student, teacher = one_pair(*self.maps_of(facts.student, facts.teacher))
        self.embed_student = Embedding(student.shape[1], self.dim)
        self.embed_teacher = Embedding(teacher.shape[1], self.dim)
        bound = 1 / math.sqrt(self.dim / 3)
        for name in ("bank_student", "bank_teacher"):
            self.register_buffer(name, torch.empty(facts.train_size, self.dim).uniform_(-bound, bound))
        self.register_buffer("log_z", torch.full((2,), UNSET))
        self.register_buffer("salt", torch.randint(2**31, ()))
        self.to(student.device)

    def forward(self, student: Outputs, teacher: Outputs, lesson: Lesson) -> dict[str, Tensor]:
        images = lesson.indices
        size = len(self.bank_student)
        own = images if self.training else images % size  # of another split, whose images have no rows
        others = draw_others(images, min(self.negatives, size - 1), size, lesson.progress, self.salt)
        features, target = one_pair(*self.maps_of(student, teacher))
        return {"loss": self.contrast(features, target, torch.cat([own[:, None], others], dim=1))}

    def contrast(self, student: Tensor, teacher: Tensor, rows: Tensor) -> Tensor:
        """The loss of features (B, D_s) and (B, D_t) with the banks' rows (B, 1 + K), the images' own first.

        In training mode it then moves the images' own rows. Else the images are of another split and have none: the
        positives are their own two embeddings.
        """
        by, under = self.embed_student(student), self.embed_teacher(teacher)
        scores = [
            similarities(bank, rows, seen) / self.temperature
            for bank, seen in ((self.bank_teacher, by), (self.bank_student, under))
        ]
        if not self.training:
            positives = (by * under).sum(dim=1, keepdim=True) / self.temperature
            scores = [torch.cat([positives, s[:, 1:]], dim=1) for s in scores]
        with torch.no_grad():
            size = math.log(len(self.bank_student))
            measured = torch.stack([s.logsumexp((0, 1)) - math.log(s.numel()) + size for s in scores])
            own = rows[:, 0]
            if self.training and self.gather is not None:  # other ranks have seen the batch's other images
                everywhere = self.gather(measured.expand(len(own), 2).contiguous())
                measured = everywhere.logsumexp(0) - math.log(len(everywhere))
                own, by_all, under_all = self.gather(own), self.gather(by.detach()), self.gather(under.detach())
            else:
                by_all, under_all = by.detach(), under.detach()
            log_z = torch.where(self.log_z == UNSET, measured, self.log_z)
            if self.training:
                self.log_z.copy_(log_z)
                for bank, seen in ((self.bank_student, by_all), (self.bank_teacher, under_all)):
                    bank[own] = moved(bank[own], seen, self.momentum)
        return total(contrast_loss(s, z, len(self.bank_student)) for s, z in zip(scores, log_z, strict=True))
