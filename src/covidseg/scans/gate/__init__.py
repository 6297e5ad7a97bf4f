"""The input gate: every byte of a file is accounted for before a voxel of it is believed.

`names` (is it a plain file, of the kind its name says?), `payload` (exactly as many bytes as claimed, checksums right),
`grids` (a believable place in the patient), one reader per format (`nifti`, `metaimage`, `nrrd`, `dicom`), and `values`
(are these Hounsfield units, are these labels?). Whatever fails is refused with one line; nothing is repaired silently.
"""
