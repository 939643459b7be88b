"""What a network is trained to minimise: one file a method."""

from kdx.losses.hinton import KnowledgeDistillationLoss as KnowledgeDistillationLoss
