"""Checkpoints: complete or not there at all, verified when they are read, the same for every topology.

    checkpoint-000500/
      manifest.json    format, state of the loop, arguments, fingerprints, versions; size and sha256 of every other file
      config.json model.safetensors tokenizer.json ...   a plain Transformers folder
      optimizer-00001-of-00002.safetensors   whole tensors of the optimizer's state; each rank writes a share of them
      random-00000.pt  random generators of each rank, read with weights_only=True

The tensors are whole whatever the topology, so any other one can go on from them: DDP, FSDP2 or ZeRO, on any number of
processes. Without a shared file system each machine keeps a complete copy (`save_on_each_node`). No file is a pickle
that could run code.
"""

from stylegen.checkpoint.load import load_training_state
from stylegen.checkpoint.manifest import (
    MANIFEST,
    OtherFormatError,
    files_in,
    find_damage,
    list_checkpoints,
    newest_checkpoint,
    put_in_place,
    read_manifest,
    recover_folders,
    settle_files,
    step_of,
    write_manifest,
)
from stylegen.checkpoint.room import check_room
from stylegen.checkpoint.save import (
    Saver,
    Weights,
    clear_unfinished,
    is_disk_error,
    is_writer,
    leave_behind,
)

__all__ = [
    "MANIFEST",
    "OtherFormatError",
    "Saver",
    "Weights",
    "check_room",
    "clear_unfinished",
    "files_in",
    "find_damage",
    "is_disk_error",
    "is_writer",
    "leave_behind",
    "list_checkpoints",
    "load_training_state",
    "newest_checkpoint",
    "put_in_place",
    "read_manifest",
    "recover_folders",
    "settle_files",
    "step_of",
    "write_manifest",
]
