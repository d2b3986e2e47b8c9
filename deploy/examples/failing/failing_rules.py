"""A model that fails: its settings are wrong, and a helper two calls down says so."""

import json

from survival_rules import limits


def read_settings():
    with open("settings.json", encoding="utf-8") as file:
        return limits.check_settings(json.load(file))


# modelop.score
def score(external_inputs, external_outputs, external_model_assets):
    settings = read_settings()
    print("scoring with", settings)
