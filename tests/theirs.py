"""Files as others' code writes them: OpenAI's CLIP, MoleCLIP's finetuned network."""

import clip
import torch

from moleclip.encoder import CLIP_MEAN, CLIP_STD


def column(values):
    """Three numbers, one a colour, as a tensor that fits pixels."""
    return torch.tensor(values).view(3, 1, 1)


def small_clip():
    """A CLIP of OpenAI's architecture with random weights: towers of 2 layers and of 1."""
    picture = {"image_resolution": 224, "vision_layers": 2, "vision_width": 64}
    text = {"context_length": 77, "vocab_size": 49408, "transformer_width": 64}
    text |= {"transformer_heads": 1, "transformer_layers": 1}
    return clip.model.CLIP(embed_dim=512, vision_patch_size=16, **picture, **text).eval()


def original_checkpoint(path, layers, inputs=512):
    """Write a file as MoleCLIP's own Finetune.py saves one; return the function of its network.

    That takes float RGB pixels (n, 3, 224, 224). Its encoder saw them blue first.
    """
    torch.manual_seed(4)
    vision, sizes = small_clip(), [inputs, *[48] * layers]
    head = [part for pair in zip(sizes, sizes[1:]) for part in hidden(*pair)]
    head = torch.nn.Sequential(*head, torch.nn.Linear(sizes[-1], 2)).eval()
    state = {f"model_image.module.model.{n}": v.half() for n, v in vision.state_dict().items()}
    rest = {"epoch": "best_val", "step": 7, "optimizer": {"state": {}, "param_groups": []}}
    torch.save({"model": state, "head": head.state_dict(), **rest}, path)

    def network(pixels):
        pixels = (pixels.flip(1) - column(CLIP_MEAN)) / column(CLIP_STD)
        with torch.no_grad():
            return head(vision.half().float().encode_image(pixels)).numpy()

    return network


def hidden(width, outputs):
    return torch.nn.Linear(width, outputs), torch.nn.ReLU(), torch.nn.Dropout(0.2)
