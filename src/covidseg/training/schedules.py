"""Learning rates as factors of the initial one, by optimiser step."""


class InverseTimeDecay:
    """lr_t = lr_0 / (1 + rate t): what "learning rate decay of 1e-6" (IV-C) means in the frameworks of its time."""

    def __init__(self, rate: float):
        self.rate = rate

    def __call__(self, step: int) -> float:
        return 1 / (1 + self.rate * step)


class WarmupPolynomial:
    """Rises linearly over the share `warmup` of the run, then falls as (1 - t / T)^power to zero at `max_steps`."""

    def __init__(self, warmup: float, max_steps: int, power: float):
        if not 0 <= warmup < 1:
            raise ValueError(f"warmup={warmup} is no share of the run: 0 for none, below 1")
        self.warmup_steps, self.max_steps, self.power = round(warmup * max_steps), max_steps, power

    def __call__(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        rest = max(self.max_steps - self.warmup_steps, 1)
        return max(1 - (step - self.warmup_steps) / rest, 0.0) ** self.power
