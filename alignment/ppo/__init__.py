"""PPO-RLHF: from a fine-tuned policy and a reward to an aligned policy, one formula a file.

`train.train_ppo` is the way in. Nothing is imported here, so that reading options (`config`) does not load torch.
"""
