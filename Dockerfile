# ppgen and its command, with the versions that were tested together, and a compiler for `--engine compile`.
#
#     docker build -t ppgen .
#     docker run --rm -v "$PWD:/work" ppgen fit vae --data digits --out digits
FROM python:3.11-slim
RUN apt-get update && apt-get install --yes --no-install-recommends g++ && rm -rf /var/lib/apt/lists/*
# The CPU build of torch: a tenth of the download. For a GPU leave this argument empty.
ARG TORCH_INDEX=https://download.pytorch.org/whl/cpu
COPY . /src
RUN pip install --no-cache-dir "/src[formula,parquet,excel]" -c /src/constraints.txt \
    ${TORCH_INDEX:+--extra-index-url "$TORCH_INDEX"} && rm -rf /src
RUN useradd --create-home ppgen
USER ppgen
WORKDIR /work
ENTRYPOINT ["ppgen"]
CMD ["--help"]
