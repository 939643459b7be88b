#!/usr/bin/env bash
# scripts/clean.sh [RUN_DIR] [--dry-run] [--checkpoints] [--logits] [--cache] [--system]: see kdx/clean.sh, of which every stage has a copy.
exec bash "$(dirname "$0")/../kdx/clean.sh" "${@:-outputs}"
