# Machinery: keep, and skip at first.
"""Scopes: what an option is about, and therefore where its value may differ. An option has one scope (fields.py)."""

from typing import NamedTuple


class Scope(NamedTuple):
    """What the options of a scope have in common."""

    in_setting: bool  # they are part of the experiment: runs with other values are not averaged with this one
    on_resume: bool  # they may change when a run is resumed
    in_evaluation: bool  # an evaluation can change them
    of_data: bool  # they are used when data are only saved, with --save-data


SCOPES = {
    # the network and its target: everything that the weights have to fit to
    "network": Scope(in_setting=True, on_resume=False, in_evaluation=False, of_data=False),
    "training": Scope(in_setting=True, on_resume=False, in_evaluation=False, of_data=False),
    # how long to train, which may increase
    "duration": Scope(in_setting=True, on_resume=True, in_evaluation=False, of_data=False),
    # what is generated; without effect with --data
    "generator": Scope(in_setting=True, on_resume=False, in_evaluation=True, of_data=True),
    # how the file of --data is read; without effect without it
    "reader": Scope(in_setting=True, on_resume=False, in_evaluation=True, of_data=False),
    # how the file of --data is divided; without effect without it
    "split": Scope(in_setting=True, on_resume=False, in_evaluation=False, of_data=False),
    # which part of a cross-validation a run tests; as the seed, it distinguishes the runs of a setting
    "fold": Scope(in_setting=False, on_resume=False, in_evaluation=False, of_data=False),
    "size": Scope(in_setting=True, on_resume=False, in_evaluation=False, of_data=True),
    "test_size": Scope(in_setting=True, on_resume=False, in_evaluation=True, of_data=True),
    # the path of a file, whose content is part of the experiment
    "place": Scope(in_setting=True, on_resume=True, in_evaluation=True, of_data=True),
    "seed": Scope(in_setting=False, on_resume=False, in_evaluation=True, of_data=True),
    # where generated data are kept; without effect with --data
    "storage": Scope(in_setting=False, on_resume=True, in_evaluation=True, of_data=True),
    # where numbers are computed
    "machine": Scope(in_setting=False, on_resume=True, in_evaluation=True, of_data=True),
    # how training is executed and recorded
    "execution": Scope(in_setting=False, on_resume=True, in_evaluation=False, of_data=False),
    "name": Scope(in_setting=False, on_resume=False, in_evaluation=False, of_data=False),
}

# The scope of a field without one, by section. Fields of other sections, and those of a problem outside of sections,
# are about the network.
DEFAULTS = {"train": "training", "data": "generator", "log": "execution"}
