"""Stems: from pixels to features, patch by patch."""

import torch

from mobileclip import reparameterize
from mobileclip.blocks import ConvPatchStem, ConvStem, PatchStem
from tests.blocks.filling import filled, noise


def test_the_scale_branch_of_the_conv_stem_is_a_choice():
    """MCi3 and MCi4 have none."""
    assert [block.scale is not None for block in ConvStem(8)] == [True, True, False]
    assert [block.scale is not None for block in ConvStem(8, scale_branch=False)] == [False, False, False]


def test_patches_are_projected_one_by_one_row_by_row():
    stem, image = filled(PatchStem(8, patch_size=4)), noise(1, 3, 8, 12)
    tokens = stem(image)
    assert tokens.shape == (1, 6, 8)
    for index in range(6):
        row, column = divmod(index, 3)
        patch = image[0, :, 4 * row : 4 * row + 4, 4 * column : 4 * column + 4]
        torch.testing.assert_close(tokens[0, index], stem.conv.weight.flatten(1) @ patch.flatten())


def test_without_padding_a_conv_patch_sees_its_own_16_pixels():
    stem, image = filled(ConvPatchStem(16, padding=0)), noise(1, 3, 32, 32)
    changed = image.clone()
    changed[:, :, 16:, :16] += 1
    assert (stem(changed) != stem(image)).any(2).flatten().tolist() == [False, False, True, False]


def test_with_padding_patches_are_shifted_by_one_pixel():
    """The release pads the first convolution by 1, so that a patch starts one pixel early."""
    padded = filled(ConvPatchStem(16, padding=1))
    plain = ConvPatchStem(16, padding=0).eval()
    plain.load_state_dict(padded.state_dict())
    image = noise(1, 3, 32, 32)
    shifted = torch.nn.functional.pad(image, (1, 0, 1, 0))[:, :, :32, :32]
    torch.testing.assert_close(padded(image), plain(shifted))


def test_both_norms_of_the_conv_patch_stem_fold():
    folded = reparameterize(filled(ConvPatchStem(16)))
    assert [type(layer) for layer in (folded.conv1, folded.conv2, folded.conv3)] == [torch.nn.Conv2d] * 3
