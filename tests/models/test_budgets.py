"""Budgets on real networks: met to the last unit as counted on the slim model, nearly used up, quickly, and close to the bound."""

from __future__ import annotations

import time

import pytest
import torch
from torch import nn
from torchvision import models

import fxprune
from fxprune import Budget
from tests.property.test_cost import counted

QUICK = ("resnet50",)
SLOW = (
    "shufflenet_v2_x1_0",
    "mobilenet_v3_large",
    "regnet_y_400mf",
    "vit_b_16",
    "resnext50_32x4d",
    "densenet121",
    "efficientnet_v2_s",
    "googlenet",
    "convnext_tiny",
    "swin_t",
    "maxvit_t",
    "squeezenet1_1",
)


def check(name: str) -> None:
    torch.manual_seed(0)
    options = {"init_weights": False} if name == "googlenet" else {}
    model = models.get_model(name, weights=None, **options).eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.weight, 0.1, 2)
    inputs = (torch.randn(1, 3, 224, 224),)
    graph = fxprune.analyze(model, inputs)
    for amounts in ({"macs": 0.5}, {"params": 0.6, "macs": 0.7}):
        start = time.process_time()
        plan = fxprune.plan(graph, budget=Budget(**amounts))  # type: ignore[arg-type]
        assert time.process_time() - start < 5
        costs = counted(fxprune.apply(model, plan, inputs, verify=False), inputs, model)
        assert all(plan.figures[kind]["achieved"] == costs[kind] <= plan.figures[kind]["asked"] for kind in amounts)
        assert max(plan.figures[kind]["achieved"] / plan.figures[kind]["asked"] for kind in amounts) > 0.99
        assert plan.figures["kept score"]["gap"] < 0.03


@pytest.mark.parametrize("name", QUICK)
def test_budgets_are_met_and_used(name: str) -> None:
    check(name)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_more_budgets_are_met_and_used(name: str) -> None:
    check(name)
