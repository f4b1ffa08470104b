"""The training loops, and the stages `pretrain` and `sft`."""
