#!/bin/sh
# Take out of a virtual environment what a running program does not need: sh trim.sh FOLDER. A third of its size.
set -eu
cd "$1"
bin/pip uninstall --quiet --yes pip setuptools
# what tests and builds others; Plotly's parts for notebooks; examples
find lib -type d \( -name tests -o -name test \) -prune -exec rm -r {} +
find lib -type f \( -name '*.pyx' -o -name '*.pxd' -o -name '*.h' -o -name '*.c' -o -name '*.cpp' -o -name '*.a' -o -name '*.pyi' \) -delete
(cd lib/python3*/site-packages && rm -r plotly/labextension plotly/package_data/widgetbundle.js \
    plotly/package_data/datasets sklearn/datasets/images)
rm -r share/jupyter
find lib -path '*.dist-info/RECORD' -delete # what pip would uninstall by
# symbols for debuggers; not of the libraries that wheels bring along, which stripping may break
find lib -name '*.so' -not -path '*.libs/*' -exec strip --strip-unneeded {} +
# byte code of what commands and workers load, as a read-only file system cannot keep any; the rest would be 80 MB
bin/python -c 'import tuner.cli, tuner.client.worker, psycopg'
