"""A graph module that runs without any source code being made of it."""

import inspect
from collections.abc import Sequence

import torch
from torch import fx
from torch.fx.graph import PythonCode
from torch.fx.node import Argument

from coordatt_deploy.errors import BundleError
from coordatt_deploy.graph.graph import weight


class InterpretedGraph(fx.GraphModule):
    """A graph module that is run node by node; no Python source is made of it, also not when it is edited or copied."""

    def recompile(self) -> PythonCode:
        """Compile nothing; give ``forward`` the names of the graph's inputs, which torch.export asks for."""
        names = [str(node.target) for node in self.graph.nodes if node.op == "placeholder"]

        def forward(module: "InterpretedGraph", *inputs: torch.Tensor) -> object:
            return module.interpret(inputs)

        parameters = [inspect.Parameter(name, inspect.Parameter.POSITIONAL_OR_KEYWORD) for name in ("self", *names)]
        forward.__signature__ = inspect.Signature(parameters)  # type: ignore[attr-defined]
        type(self).forward = forward  # torch makes a class for each graph module
        return PythonCode("", {}, _lineno_map=None)

    def interpret(self, inputs: Sequence[torch.Tensor]) -> object:
        """Run the graph on its inputs, in the order of its placeholders."""
        values: dict[fx.Node, Argument] = {}
        remaining = iter(inputs)
        last_user: dict[fx.Node, fx.Node] = {}
        for node in reversed(self.graph.nodes):
            for source in node.all_input_nodes:
                last_user.setdefault(source, node)
        for node in self.graph.nodes:
            if node.op == "placeholder":
                values[node] = next(remaining)
            elif node.op == "get_attr":
                values[node] = weight(self, node)
            else:
                args, kwargs = fx.node.map_arg((node.args, node.kwargs), values.__getitem__)
                if node.op == "output":
                    return args[0]
                # A file has functions alone; exporters put modules in their place to have calls named.
                called = self.get_submodule(str(node.target)) if node.op == "call_module" else node.target
                values[node] = called(*args, **kwargs)
            for source in node.all_input_nodes:
                if last_user[source] is node:
                    del values[source]
        raise BundleError("the captured graph returns nothing")
