import keras
import pytest
from laws.removal import check_law

import mobileprune as mp
from mobileprune.channel_groups import ChannelGraph

layers = keras.layers


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("in_reverse", [True, False])
def test_a_table_that_is_read_in_reverse_follows_what_it_made(tied, in_reverse):
    words = keras.Input((5,), dtype="int32")
    table = layers.ReversibleEmbedding(20, 16, tie_weights=tied, name="table")
    x = layers.Dense(16, activation="tanh", name="mix")(table(words))
    model = keras.Model(words, table(x, reverse=True) if in_reverse else layers.Dense(3)(x))
    smaller, _ = check_law(model)
    made = smaller.get_layer("table")
    assert made.output_dim == 8
    assert tied or made.reverse_embeddings.shape == (8, 20)
    tables = {group.name: group for group in mp.channel_groups(model) if "table" in group.layers}
    assert ("mix" in tables["table"].layers) == in_reverse


def test_words_cost_multiplications_in_reverse_only():
    words = keras.Input((5,), dtype="int32")
    table = layers.ReversibleEmbedding(20, 16)
    graph = ChannelGraph(keras.Model(words, table(table(words), reverse=True)))
    assert graph.cost(graph.everything()).macs == 5 * 16 * 20


def test_an_embedding_loses_columns():
    words = keras.Input((5,), dtype="int32")
    model = keras.Model(words, layers.Dense(3)(layers.Embedding(20, 16, name="table")(words)))
    smaller, _ = check_law(model)
    assert smaller.get_layer("table").embeddings.shape == (20, 8)
