"""AdaGRPO's advantages in Flow-Factory: ``train.trainer_type: flow_factory_adagrpo.AdaGRPOTrainer``."""

import torch
from flow_factory.trainers.grpo import GRPOTrainer

from harness.adagrpo import CapabilityTracker, fuse_advantages, global_advantage, local_advantage

DECAY, WEIGHT = 0.8, 1.0


class AdaGRPOTrainer(GRPOTrainer):
    """Its trainer, with local advantages fused with those by the capability."""

    def compute_advantages(self, samples, rewards, store_to_samples=True, aggregation_func=None):
        """As its own, by ``fused``, which its processor calls as it would a reducer of the user's."""
        return super().compute_advantages(samples, rewards, store_to_samples, self.fused)

    def fused(self, processor, samples, rewards, store_to_samples):
        """Advantages ``[len(samples)]`` of this rank; capability is that of the rewards that the rank has collected."""
        collected, groups = processor.collect_group_rewards(samples, rewards)
        total = sum(processor.reward_weights[name] * torch.as_tensor(of).double() for name, of in collected.items())
        if not hasattr(self, "tracker"):
            self.tracker = CapabilityTracker(decay=DECAY)
        self.tracker.update(total)
        groups, fused = torch.as_tensor(groups), torch.zeros_like(total)
        for group in groups.unique():
            own = total[groups == group]
            level = global_advantage(own, self.tracker.mean, self.tracker.std)
            fused[groups == group] = fuse_advantages(local_advantage(own), level, WEIGHT)
        advantages = processor._to_local(fused.float().numpy())
        if store_to_samples:
            for sample, advantage in zip(samples, advantages, strict=True):
                sample.extra_kwargs["advantage"] = advantage
        return advantages
