"""Other indexes and vector stores that a search is compared with, each where it is installed.

Each is built with its own defaults, or what its manual gives for as many vectors, and searched at rising efforts, of
which a caller takes the first that finds enough. Several queries are given as each takes them: all in one call.
"""

from __future__ import annotations

import logging
import os
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, TypeAlias

import numpy as np
from numpy.typing import NDArray

__all__ = ["PEERS", "Peer", "Search", "installed"]

Floats: TypeAlias = NDArray[np.float32]
Search: TypeAlias = Callable[[Floats, int], Sequence[Sequence[int]]]
EFFORTS = (50, 100, 200, 300, 400, 600, 800, 1200, 1600, 2400)


class Peer(ABC):
    """A built index; the number of a vector is its row. Made of vectors, an empty folder, and threads to build with.

    package: what it needs installed. efforts: settings of a search, rising. stores_text: whether it keeps texts, too.
    """

    name: ClassVar[str]
    package: ClassVar[str]
    efforts: ClassVar[Sequence[Any]] = EFFORTS
    stores_text: ClassVar[bool] = True

    @abstractmethod
    def __init__(self, vectors_ND: Floats, folder: Path, threads: int) -> None: ...

    @abstractmethod
    def searcher(self, effort: Any) -> Search:
        """Finds the numbers of the k nearest of each query, (Q,D), on one thread."""

    def close(self) -> None:
        """Let go of what it holds in memory."""
        vars(self).clear()


class Hnswlib(Peer):
    """hnswlib with M = 16 and ef_construction = 200, its defaults."""

    name, package, stores_text = "hnswlib", "hnswlib", False

    def __init__(self, vectors_ND: Floats, folder: Path, threads: int) -> None:
        hnswlib: Any = import_module("hnswlib")

        self.index = hnswlib.Index("ip", vectors_ND.shape[1])
        self.index.init_index(len(vectors_ND), M=16, ef_construction=200, random_seed=1)
        self.index.add_items(vectors_ND, num_threads=threads)
        self.index.set_num_threads(1)

    def searcher(self, effort: int) -> Search:
        """See `Peer`."""
        self.index.set_ef(effort)
        return lambda queries_QD, k: list(self.index.knn_query(queries_QD, k, num_threads=1)[0])


class FaissHnsw(Peer):
    """FAISS's HNSW32 over float32, ef_construction = 40, its defaults."""

    name, package, stores_text = "FAISS HNSW", "faiss", False

    def __init__(self, vectors_ND: Floats, folder: Path, threads: int) -> None:
        import faiss

        faiss.omp_set_num_threads(threads)
        self.index = faiss.IndexHNSWFlat(vectors_ND.shape[1], 32, faiss.METRIC_INNER_PRODUCT)
        self.index.add(vectors_ND)
        faiss.omp_set_num_threads(1)

    def searcher(self, effort: int) -> Search:
        """See `Peer`."""
        self.index.hnsw.efSearch = effort
        return lambda queries_QD, k: list(self.index.search(queries_QD, k)[1])


class LanceDb(Peer):
    """LanceDB with IVF-PQ, four numbers a part, its list of nearest refined by the stored vectors."""

    name, package = "LanceDB", "lancedb"
    efforts = ((20, 10), (50, 10), (100, 10), (100, 20), (200, 20), (300, 30), (500, 30), (1000, 40))

    def __init__(self, vectors_ND: Floats, folder: Path, threads: int) -> None:
        os.environ.setdefault("LANCE_CPU_THREADS", str(threads))
        lancedb: Any = import_module("lancedb")
        pyarrow: Any = import_module("pyarrow")

        count, width = vectors_ND.shape
        schema = pyarrow.schema(
            [("id", pyarrow.int64()), ("text", pyarrow.string()), ("vector", pyarrow.list_(pyarrow.float32(), width))]
        )
        self.table = lancedb.connect(folder).create_table("vectors", schema=schema)
        for start in range(0, count, 50_000):
            part = vectors_ND[start : start + 50_000]
            numbers = range(start, start + len(part))
            flat = pyarrow.FixedSizeListArray.from_arrays(pyarrow.array(part.reshape(-1)), width)
            columns = [pyarrow.array(numbers), pyarrow.array([f"text {n}" for n in numbers]), flat]
            self.table.add(pyarrow.table(columns, schema=schema))
        self.table.create_index(
            metric="dot",
            num_partitions=max(1, int(count**0.5)),
            num_sub_vectors=width // 4,
            vector_column_name="vector",
        )

    def searcher(self, effort: tuple[int, int]) -> Search:
        """See `Peer`."""
        probes, refine = effort

        def search(queries_QD: Floats, k: int) -> list[list[int]]:
            query = queries_QD[0] if len(queries_QD) == 1 else queries_QD
            wanted = self.table.search(query).distance_type("dot").nprobes(probes).refine_factor(refine).limit(k)
            found = wanted.to_arrow()
            numbers = found["id"].to_pylist()
            owners = found["query_index"].to_pylist() if len(queries_QD) > 1 else [0] * len(numbers)
            answers: list[list[int]] = [[] for _ in queries_QD]
            for owner, number in zip(owners, numbers, strict=True):
                answers[owner].append(number)
            return answers

        return search


class Chroma(Peer):
    """Chroma, persistent, with its own HNSW of 16 links and 100 for construction, its defaults."""

    name, package = "Chroma", "chromadb"

    def __init__(self, vectors_ND: Floats, folder: Path, threads: int) -> None:
        chromadb: Any = import_module("chromadb")

        self.folder = folder
        self.settings = chromadb.Settings(anonymized_telemetry=False)
        client = chromadb.PersistentClient(str(folder), self.settings)
        settings = {"hnsw": {"space": "ip", "num_threads": threads}}
        self.collection = client.create_collection("vectors", configuration=settings, embedding_function=None)
        size = client.get_max_batch_size()
        for start in range(0, len(vectors_ND), size):
            part = vectors_ND[start : start + size]
            names = [str(n) for n in range(start, start + len(part))]
            self.collection.add(ids=names, embeddings=part, documents=[f"text {name}" for name in names])

    def searcher(self, effort: int) -> Search:
        """See `Peer`."""
        chromadb: Any = import_module("chromadb")

        self.collection.modify(configuration={"hnsw": {"ef_search": effort, "num_threads": 1}})
        # An index in memory keeps the effort that it was loaded with.
        import_module("chromadb.api.client").SharedSystemClient.clear_system_cache()
        client = chromadb.PersistentClient(str(self.folder), self.settings)
        self.collection = client.get_collection("vectors", embedding_function=None)

        def search(queries_QD: Floats, k: int) -> list[list[int]]:
            found = self.collection.query(query_embeddings=queries_QD, n_results=k, include=["documents"])
            return [[int(name) for name in names] for names in found["ids"]]

        return search

    def close(self) -> None:
        """See `Peer`."""
        super().close()
        import_module("chromadb.api.client").SharedSystemClient.clear_system_cache()


class MilvusLite(Peer):
    """Milvus Lite with IVF_FLAT of as many lists as Milvus's manual gives, four times the square root."""

    name, package = "Milvus Lite", "milvus_lite"
    efforts = (16, 64, 128, 256, 512, 1024, 2048)

    def __init__(self, vectors_ND: Floats, folder: Path, threads: int) -> None:
        logging.getLogger("pymilvus").setLevel(logging.ERROR)
        pymilvus: Any = import_module("pymilvus")

        folder.mkdir(parents=True, exist_ok=True)
        count, width = vectors_ND.shape
        self.client = pymilvus.MilvusClient(str(folder / "milvus.db"))
        schema = self.client.create_schema(auto_id=False)
        schema.add_field("id", pymilvus.DataType.INT64, is_primary=True)
        schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=width)
        schema.add_field("text", pymilvus.DataType.VARCHAR, max_length=64)
        index = self.client.prepare_index_params()
        lists = {"nlist": max(16, int(4 * count**0.5))}
        index.add_index("vector", index_type="IVF_FLAT", metric_type="IP", params=lists)
        self.client.create_collection("vectors", schema=schema)
        for start in range(0, count, 2000):
            part = vectors_ND[start : start + 2000]
            rows = [{"id": start + n, "vector": v, "text": f"text {start + n}"} for n, v in enumerate(part)]
            self.client.insert("vectors", rows)
        self.client.flush("vectors")
        self.client.create_index("vectors", index)
        self.client.load_collection("vectors")

    def searcher(self, effort: int) -> Search:
        """See `Peer`."""
        parameters = {"metric_type": "IP", "params": {"nprobe": effort}}

        def search(queries_QD: Floats, k: int) -> list[list[int]]:
            found = self.client.search(
                "vectors", data=queries_QD.tolist(), limit=k, search_params=parameters, output_fields=["text"]
            )
            return [[hit["id"] for hit in hits] for hits in found]

        return search

    def close(self) -> None:
        """See `Peer`."""
        self.client.close()
        super().close()


PEERS: tuple[type[Peer], ...] = (Hnswlib, FaissHnsw, LanceDb, Chroma, MilvusLite)


def installed(peer: type[Peer]) -> bool:
    """Whether the package of a peer is there."""
    return find_spec(peer.package) is not None
