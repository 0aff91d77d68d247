# ppgen and its command, with the versions that were tested together, a compiler for `--engine compile`, and a font with
# Japanese letters for pictures.
#
#     docker build -t ppgen .
#     docker run --rm --user "$(id -u):$(id -g)" -v "$PWD:/work" ppgen fit vae --data digits --out digits
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends g++ fonts-ipaexfont-gothic \
    && rm -rf /var/lib/apt/lists/*
# The CPU build of torch: a tenth of the download. For a GPU leave this argument empty.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY . /src
RUN pip install --no-cache-dir "/src[formula,parquet,excel]" -c /src/constraints.txt \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} && rm -rf /src
# Whoever runs it, what is written is theirs: --user may be anybody, with the home of ppgen.
RUN useradd --create-home ppgen && mkdir /work && chmod 777 /home/ppgen /work
ENV HOME=/home/ppgen
USER ppgen
WORKDIR /work
ENTRYPOINT ["ppgen"]
CMD ["--help"]
