"""A configuration that brings its modelling file along wherever it is saved.

Hugging Face copies remote code only for classes that came from such a file. Where adasearch is installed they do not, so that a model
that was loaded there and saved or pushed again would name a file that stays behind. Travels with every student and encoder.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig


class CarryingConfig(PreTrainedConfig):
    """Configuration of a model of ours."""

    def save_pretrained(self, save_directory: Any, **kwargs: Any) -> None:
        """As Hugging Face does, with the files that ``auto_map`` names copied from the folder that the model was loaded from.

        Where one is not there (the model was never saved by ``save_student``) ``auto_map`` goes: the folder loads where adasearch is
        installed. Entries of a hub's repository name it and stay.
        """
        own = [entry for entry in (getattr(self, "auto_map", None) or {}).values() if "--" not in entry]
        source, target = Path(self.name_or_path), Path(save_directory)
        files = {f"{entry.partition('.')[0]}.py" for entry in own}
        if all((source / file).is_file() for file in files):
            target.mkdir(parents=True, exist_ok=True)
            for file in files:
                if not (target / file).exists() or not (source / file).samefile(target / file):
                    shutil.copyfile(source / file, target / file)
        elif own:
            del self.auto_map
        super().save_pretrained(save_directory, **kwargs)
