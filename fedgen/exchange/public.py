"""The public codec of a run: computed once on a machine, and kept below ``$FEDGEN_HOME/codecs``."""

from __future__ import annotations

import hashlib
import json
import logging
from dataclasses import replace
from functools import lru_cache
from typing import Any

from fedgen.data.encoders import EncoderSettings, open_encoder
from fedgen.data.pretrained import content
from fedgen.data.public import open_public, public_identity
from fedgen.errors import CheckpointError, DataError
from fedgen.exchange.files import load_tensors, save_tensors
from fedgen.files import home, locked
from fedgen.models.codec import CodecSettings
from fedgen.models.lengths import Lengths
from fedgen.models.public import PublicSpace
from fedgen.models.states import exact_digest

logger = logging.getLogger(__name__)


def codec_identity(encoder: dict[str, Any], settings: CodecSettings, lengths: Lengths) -> dict[str, Any]:
    """Return what decides the latents of a codec; into how many tokens it decodes them is not part of that.

    Parameters
    ----------
    encoder : dict
        The encoder's identity.
    settings : CodecSettings
    lengths : Lengths
    """
    sizes = {name: getattr(settings, name) for name in ("channels", "positions", "components", "noise")}
    public = public_identity(settings.public)
    return {"encoder": encoder, "public": public, **sizes, "training_length": lengths.training}


@lru_cache(maxsize=4)  # the nodes of one process share it
def public_space(
    encoder: EncoderSettings, settings: CodecSettings, lengths: Lengths, identity_text: str | None = None
) -> PublicSpace:
    """Return the codec of public sounds under an encoder, the same on every node: half a minute, the first time.

    The sounds are encoded on the CPU, whatever the device: there, machines differ least. What is kept has all
    components; fewer are taken of it.

    Parameters
    ----------
    encoder : EncoderSettings
    settings : CodecSettings
    lengths : Lengths
    identity_text : str, optional
        The encoder's identity as JSON, such as a store's: with it, a codec that is kept is found without the model.

    Raises
    ------
    DataError
        ``codec.public`` is no folder of clips; no clip can be read.
    ConfigError
        ``generator.training_length`` is above the encoder's length.
    """
    chosen = open_encoder(encoder)
    lengths.resolve(chosen.shape[0])
    known = content(chosen.identity()) if identity_text is None else json.loads(identity_text)
    identity = codec_identity(known, settings, lengths)
    wanted, noise = identity.pop("components"), identity.pop("noise")
    identity |= {"output_length": lengths.output, "upsampling": lengths.upsampling}
    text = json.dumps(identity, sort_keys=True)
    file = home() / "codecs" / f"{hashlib.sha256(text.encode()).hexdigest()[:32]}.safetensors"
    file.parent.mkdir(parents=True, exist_ok=True)
    with locked(file.parent):
        try:
            tensors, about = load_tensors(file)
            if about == identity | {"sha256": exact_digest(dict(sorted(tensors.items())))}:
                return PublicSpace.from_state(tensors).truncated(wanted, noise)
            logger.warning("%s is made anew: it is not what was saved", file)
        except (CheckpointError, DataError) as error:
            if file.is_file():
                logger.warning("%s is made anew: %s", file, error)
        logger.info("fitting the codec to public sounds (%s): once on this machine", identity["public"])
        most = replace(settings, components=settings.channels * settings.positions, noise=True)
        space = PublicSpace.of(open_public(chosen, settings.public), most, lengths)
        state = dict(sorted(space.state().items()))
        save_tensors(file, state, identity | {"sha256": exact_digest(state)})
    return space.truncated(wanted, noise)
