"""How the structures of chest CT look in viewers: one colour each, in figures, 3D Slicer and DICOM alike."""

COLOURS = {"lesion": (209, 73, 91), "lung": (143, 184, 222)}  # red, green, blue of 255
OTHER_COLOUR = (237, 174, 73)  # of whatever else a mask holds
