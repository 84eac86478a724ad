"""The straightforward way: MONAI reads, scales and resizes, timm computes, grad-cam draws, one file after the other.

`python -m benchmarks.peers.loop FOLDER OUT` scores every file of a folder with EfficientNet-Lite0 and two labels, and writes a
picture of a heatmap for each, and a table.
"""

import csv
import logging
import sys
import warnings
from pathlib import Path

import numpy as np
import timm
import torch
from monai.transforms import Compose, LoadImage, Resize, ScaleIntensity
from PIL import Image
from pytorch_grad_cam import GradCAM
from pytorch_grad_cam.utils.image import show_cam_on_image
from pytorch_grad_cam.utils.model_targets import ClassifierOutputTarget

from pipeline.imaging.dicom.codecs import register

SIZE = 224


def main(folder: Path, out: Path) -> int:
    """Score a folder; pydicom gets the decoders that octray has, since it could not read JPEG 2000 as quickly otherwise."""
    logging.disable(logging.CRITICAL)
    warnings.simplefilter("ignore")
    register()
    out.mkdir(parents=True, exist_ok=True)
    model = timm.create_model("tf_efficientnet_lite0", pretrained=False, num_classes=2).eval()
    read = Compose([LoadImage(image_only=True, ensure_channel_first=True), ScaleIntensity(), Resize((SIZE, SIZE))])
    cam = GradCAM(model=model, target_layers=[model.bn2])
    with (out / "predictions.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["file", "probability"])
        for path in sorted(folder.iterdir()):
            pixels = torch.as_tensor(np.asarray(read(path)), dtype=torch.float32)[:1].repeat(3, 1, 1)[None]
            with torch.no_grad():
                probability = float(torch.softmax(model(pixels), 1)[0, 1])
            heat = cam(input_tensor=pixels, targets=[ClassifierOutputTarget(1)])[0]
            grey = np.clip(pixels[0].permute(1, 2, 0).numpy(), 0, 1)
            Image.fromarray(show_cam_on_image(grey, heat, use_rgb=True)).save(out / f"{path.stem}.png")
            table.writerow([path.name, f"{probability:.4f}"])
    return 0


if __name__ == "__main__":
    sys.exit(main(Path(sys.argv[1]), Path(sys.argv[2])))
