"""Stochastic gradient descent as the paper's frameworks have it."""

from typing import Any

import keras
from keras import ops

from keras_muffnet.training.recipe import RunRecipe


@keras.saving.register_keras_serializable("keras_muffnet")
class SGD(keras.optimizers.SGD):
    """SGD whose weight decay is part of the gradient, and so of the momentum.

    That is what "weight decay" of SGD means in the paper and its references;
    Keras's own decays the weights apart from the momentum, which is a tenth of
    it at momentum 0.9.

    Args:
        learning_rate: number or schedule.
        momentum: as in Keras.
        nesterov: as in Keras.
        l2: what a weight is multiplied with to be added to its gradient.
        decay_all: whether to decay biases and the scales and offsets of batch
            normalization too. All of these, and they alone, have one axis.
        **kwargs: as in Keras.
    """

    def __init__(
        self,
        learning_rate: Any = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        l2: float = 0.0,
        decay_all: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(learning_rate, momentum, nesterov, **kwargs)
        self.l2 = l2
        self.decay_all = decay_all

    def update_step(
        self, gradient: Any, variable: Any, learning_rate: Any
    ) -> None:
        """Updates one variable by its gradient."""
        if self.l2 and self._decays(variable):
            decay = ops.cast(self.l2, variable.dtype)
            gradient = ops.add(gradient, ops.multiply(variable, decay))
        super().update_step(gradient, variable, learning_rate)

    def _backend_update_step(
        self, grads: list[Any], trainable_variables: list[Any], rate: Any
    ) -> None:
        """Updates all variables, on PyTorch by a few calls for them all.

        There Keras does so for its own optimizers and not for those derived
        from them: a thousand calls, a twentieth of a step of MuffNet 0.5. The
        results are the same, for float32 to the bit. Without momentum it is
        one by one.
        """
        if keras.backend.backend() != "torch" or not self.momentum:
            super()._backend_update_step(grads, trainable_variables, rate)
            return
        import torch

        values = [variable.value for variable in trainable_variables]
        momenta = [
            self.momentums[self._get_variable_index(variable)].value
            for variable in trainable_variables
        ]
        with torch.no_grad():
            steps = [g.to(v.dtype) for g, v in zip(grads, values, strict=True)]
            if self.l2:
                decays = [self.l2 * self._decays(value) for value in values]
                decayed = torch._foreach_mul(values, decays)
                steps = list(torch._foreach_add(steps, decayed))
            factor = ops.convert_to_tensor(rate)  # of a variable, too
            steps = list(torch._foreach_mul(steps, factor))
            torch._foreach_mul_(momenta, self.momentum)
            torch._foreach_sub_(momenta, steps)
            if self.nesterov:
                ahead = list(torch._foreach_mul(momenta, self.momentum))
                torch._foreach_sub_(ahead, steps)
            else:
                ahead = momenta
            torch._foreach_add_(values, ahead)

    def _decays(self, variable: Any) -> bool:
        return self.decay_all or len(variable.shape) > 1

    def finalize_variable_values(self, var_list: Any) -> None:
        """Leaves the weights alone, where Keras would end with the averages.

        A run calls `model.fit` for each epoch, and swaps the averages in where
        it evaluates.
        """

    def swap_averages(self) -> None:
        """Exchanges the trained weights with their moving averages.

        To the bit: a run that was resumed after it is the same as one that
        was not. Without moving averages nothing is done.
        """
        if not self.use_ema:
            return
        for variable, average in zip(
            self._trainable_variables,
            self._model_variables_moving_average,
            strict=True,
        ):
            # A copy, since some backends give a view of the variable.
            value = ops.convert_to_numpy(variable).copy()
            variable.assign(average)
            average.assign(value)

    def get_config(self) -> dict[str, Any]:
        """Returns what makes the same optimizer."""
        config = super().get_config()
        return {**config, "l2": self.l2, "decay_all": self.decay_all}


def make_optimizer(recipe: RunRecipe, schedule: Any) -> SGD:
    """Returns the optimizer that a recipe asks for.

    Args:
        recipe: the recipe.
        schedule: the learning rate by step; see `make_schedule`.
    """
    return SGD(
        schedule,
        momentum=float(recipe.momentum),
        nesterov=recipe.nesterov,
        l2=recipe.weight_decay,
        decay_all=recipe.decay_all,
        use_ema=recipe.ema is not None,
        ema_momentum=recipe.ema or 0.0,
    )
