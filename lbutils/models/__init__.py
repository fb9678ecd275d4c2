"""Frozen image-text models: features of images, features of prompts, and names as embeddings.

In comes the name of a checkpoint, a split of images, prompts. Out come unit features, text
classifiers, and `Names`: token embeddings that other open_clip and transformers models take in.
Nothing here is fitted to labels.
"""

from lbutils._util import lazy

__all__, __getattr__, __dir__ = lazy(
    __name__,
    {
        "encoders": ["DualEncoder", "load_encoder"],
        "features": ["image_features"],
        "prompts": ["fill", "resolve"],
        "names": ["NameEmbeddings", "Names"],
        "classifier": [
            "FeatureClassifier",
            "class_means",
            "logits",
            "text_classifier",
            "text_features",
        ],
    },
)
