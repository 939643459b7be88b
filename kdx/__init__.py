"""Knowledge distillation of image classifiers. Import the modules by name: this package imports none."""

__version__ = "0.1.0"
