// fastdecode_decode_step: a row has the same bits alone and among others, on any number of threads
// and wherever its pages lie; the ids of one sequence give the same as rows of one call and one by
// one; nothing is written beside the new ids' slots, and nothing is read that holds no id.

#include <memory>

#include "weights.h"

namespace fuzz {
namespace {

// A model, and rows of ids. What ids have stored is made from numbers: the same for every layout.
struct Model {
  fastdecode_decode_args args;
  std::vector<fastdecode_layer> layers;
  std::vector<std::unique_ptr<Weights>> weights;
  std::vector<std::unique_ptr<Exact<uint8_t>>> how;  // fastdecode_weights of each layer's matrices
  std::vector<std::unique_ptr<Exact<float>>> floats;
  Exact<float> norm, cos, sin, x;
  std::vector<int64_t> lengths, common;  // common: ids of a row that all such rows begin with
  uint64_t seed;

  Weights& keep(Weights matrix) {
    weights.push_back(std::make_unique<Weights>(std::move(matrix)));
    return *weights.back();
  }
  const float* keep(Exact<float> array) {
    floats.push_back(std::make_unique<Exact<float>>(std::move(array)));
    return floats.back()->get();
  }
};

// How a matrix with k inputs is stored: as the step says, or small where k allows it.
Weights random_matrix(const Model& m, bool mixed, int64_t features, int64_t k, Random& random) {
  constexpr int32_t kGroups[] = {32, 64, 128};
  int32_t type = m.args.dtype;
  if (mixed) type = static_cast<int32_t>(random.below(8));
  if (k % block_of(type) != 0) type = FASTDECODE_WEIGHTS_INT8;
  const int32_t group = type == FASTDECODE_WEIGHTS_INT4 ? kGroups[random.below(3)] : 0;
  return random_weights(type, group, random.below(2) == 0, features, k, false, random);
}

void make_layers(Bytes& bytes, Model& m, Random& random) {
  const fastdecode_decode_args& a = m.args;
  const int64_t queries = a.heads * a.head_dim, kv = a.kv_heads * a.head_dim;
  const bool biased = bytes.one_in(2);
  const int64_t q_kind = bytes.in(0, 2), k_kind = bytes.in(0, 2);  // no norm, RMS, layer norm
  note(static_cast<uint64_t>(q_kind * 3 + k_kind));
  const bool mixed = bytes.one_in(2);
  note(static_cast<uint64_t>(mixed));
  for (int64_t i = 0; i < a.layer_count; ++i) {
    fastdecode_layer l = {};
    m.how.push_back(std::make_unique<Exact<uint8_t>>(7 * int64_t{sizeof(fastdecode_weights)}));
    fastdecode_weights* how = reinterpret_cast<fastdecode_weights*>(m.how.back()->get());
    if (mixed) l.weights = how;
    const struct {
      const void** weight;
      const float** bias;
      int64_t out, in;
    } parts[] = {{&l.q, &l.q_bias, queries, a.hidden},
                 {&l.k, &l.k_bias, kv, a.hidden},
                 {&l.v, &l.v_bias, kv, a.hidden},
                 {&l.o, &l.o_bias, a.hidden, queries},
                 {&l.gate, &l.gate_bias, a.inner, a.hidden},
                 {&l.up, &l.up_bias, a.inner, a.hidden},
                 {&l.down, &l.down_bias, a.hidden, a.inner}};
    for (const auto& part : parts) {
      Weights& matrix = m.keep(random_matrix(m, mixed, part.out, part.in, random));
      *part.weight = matrix.data.get();
      *how++ = how_of(matrix);
      if (biased) *part.bias = m.keep(filled(part.out, random));
    }
    l.norm_attention = m.keep(filled(a.hidden, random));
    l.norm_mlp = m.keep(filled(a.hidden, random));
    if (q_kind > 0) l.q_norm = m.keep(filled(queries, random));
    if (q_kind > 1) l.q_norm_bias = m.keep(filled(queries, random));
    if (k_kind > 0) l.k_norm = m.keep(filled(kv, random));
    if (k_kind > 1) l.k_norm_bias = m.keep(filled(kv, random));
    m.layers.push_back(l);
  }
}

void make_model(Bytes& bytes, Model& m) {
  fastdecode_decode_args& a = m.args;
  fastdecode_decode_args_init(&a);
  const bool far = bytes.one_in(16);  // rows of several stretches
  a.layer_count = bytes.in(0, 2);
  a.hidden = bytes.one_in(8) ? bytes.in(1, 300) : bytes.in(1, 40);
  a.inner = bytes.one_in(8) ? bytes.in(1, 300) : bytes.in(1, 40);
  if (bytes.one_in(4)) {  // multiples of 32, which small weights need
    a.hidden = (a.hidden + 31) / 32 * 32;
    a.inner = (a.inner + 31) / 32 * 32;
  }
  a.kv_heads = bytes.in(1, far ? 2 : 3);
  a.heads = a.kv_heads * bytes.in(1, 3);
  a.head_dim = 2 * (bytes.one_in(4) && !far ? bytes.in(1, 40) : bytes.in(1, 9));
  if (!far && bytes.one_in(16)) a.head_dim = 256;
  a.dtype = static_cast<int32_t>(bytes.in(0, 2));
  a.swin = static_cast<int32_t>(bytes.in(0, 1));
  a.activation = bytes.in(0, 2);
  a.scale = 0.3f;
  a.rows = bytes.in(0, far ? 3 : 5);
  m.seed = bytes.bits(2);
  Random random(m.seed);
  m.norm = filled(a.hidden, random);
  m.cos = filled(a.rows * a.head_dim, random);
  m.sin = filled(a.rows * a.head_dim, random);
  m.x = filled(a.rows * a.hidden, random);
  for (int64_t r = 0; r < a.rows; ++r) {
    m.lengths.push_back(far && bytes.one_in(2) ? bytes.in(490, 1100) : bytes.in(0, 60));
    m.common.push_back(bytes.one_in(2) ? m.lengths.back() : 0);
  }
  make_layers(bytes, m, random);
  a.norm = m.norm.get();
  note(static_cast<uint64_t>(a.dtype * 2 + far));
}

// Pages of rows of a model, with room for `room` more ids each.
struct Layout {
  int64_t page_slots, pages = 0, width = 0, stride = 0;
  std::vector<std::vector<int64_t>> of_row;  // pages of each row
  Exact<int32_t> table;
  std::vector<Exact<uint8_t>> storage;  // of each layer keys, then values
};

int64_t place_of(const Model& m, const Layout& l, int64_t page, int64_t head, int64_t slot) {
  const fastdecode_decode_args& a = m.args;
  return (((page * a.kv_heads + head) * l.page_slots + slot) * a.head_dim) * value_size(a.dtype);
}

// All bits of what holds no id are set, which is a NaN of every dtype.
void fill_storage(Model& m, Layout& l) {
  const fastdecode_decode_args& a = m.args;
  const int64_t page_bytes = place_of(m, l, 1, 0, 0);
  for (int64_t part = 0; part < 2 * a.layer_count; ++part) {
    Exact<uint8_t> bytes(l.pages * page_bytes);
    bytes.fill(0xff);
    for (int64_t r = 0; r < a.rows; ++r) {
      const size_t row = static_cast<size_t>(r);
      for (int64_t id = 0; id < m.lengths[row]; ++id) {
        const int64_t source = id < m.common[row] ? 0 : r + 1;
        Random random(m.seed + static_cast<uint64_t>((part * 8 + source) << 20 | id));
        const int64_t page = l.of_row[row][static_cast<size_t>(id / l.page_slots)];
        for (int64_t head = 0; head < a.kv_heads; ++head) {
          uint8_t* at = bytes.get() + place_of(m, l, page, head, id % l.page_slots);
          for (int64_t i = 0; i < a.head_dim; ++i)
            put(a.dtype, at, i, random_bits(a.dtype, random));
        }
      }
    }
    l.storage.push_back(std::move(bytes));
  }
}

Layout make_layout(Bytes& bytes, Model& m, int64_t room) {
  Layout l;
  l.page_slots = bytes.in(1, 40);
  const bool shared = bytes.one_in(2);
  std::vector<int64_t> owned_by_all;
  for (size_t r = 0; r < m.lengths.size(); ++r) {
    std::vector<int64_t> pages;
    const int64_t count = (m.lengths[r] + room - 1) / l.page_slots + 1;
    for (int64_t p = 0; p < count; ++p) {
      const size_t at = static_cast<size_t>(p);
      if (!shared || (p + 1) * l.page_slots > m.common[r]) {
        pages.push_back(l.pages++);
        continue;
      }
      if (at == owned_by_all.size()) owned_by_all.push_back(l.pages++);
      pages.push_back(owned_by_all[at]);
    }
    l.width = std::max<int64_t>(l.width, count);
    l.of_row.push_back(pages);
  }
  l.pages += bytes.in(0, 3);
  std::vector<int64_t> order;
  Random random(bytes.bits(2));
  for (int64_t p = 0; p < l.pages; ++p) {
    const size_t at = random.below(static_cast<uint64_t>(p) + 1);
    order.push_back(p);
    std::swap(order[at], order.back());
  }
  l.width += bytes.in(0, 3);
  l.stride = l.width + bytes.in(0, 2);
  const int64_t rows = m.args.rows;
  l.table = Exact<int32_t>(rows > 0 ? (rows - 1) * l.stride + l.width : 0);
  l.table.fill(bytes.of<int32_t>({-1, INT32_MAX, INT32_MIN}));  // behind a row's last page
  for (size_t r = 0; r < l.of_row.size(); ++r) {
    for (size_t p = 0; p < l.of_row[r].size(); ++p) {
      int64_t& page = l.of_row[r][p];
      page = order[static_cast<size_t>(page)];
      l.table[static_cast<int64_t>(r) * l.stride + static_cast<int64_t>(p)] =
          static_cast<int32_t>(page);
    }
  }
  fill_storage(m, l);
  return l;
}

// One call's rows: of which row of the model each is, and behind how many ids it comes.
struct Call {
  std::vector<size_t> row;
  std::vector<int64_t> length;
  Exact<float> x, cos, sin;
};

// Feeds a call's rows into a layout; returns x.
Exact<float> feed(Model& m, Layout& l, const Call& call, int32_t threads, bool chained,
                  bool stores_only = false) {
  fastdecode_decode_args a = m.args;
  std::vector<fastdecode_layer> layers = m.layers;
  for (size_t i = 0; i < layers.size(); ++i) {
    layers[i].keys = l.storage[2 * i].get();
    layers[i].values = l.storage[2 * i + 1].get();
  }
  a.rows = static_cast<int64_t>(call.row.size());
  Exact<int64_t> lengths(a.rows);
  Exact<int32_t> table(a.rows > 0 ? (a.rows - 1) * l.stride + l.width : 0);
  for (int64_t r = 0; r < a.rows; ++r) {
    lengths[r] = call.length[static_cast<size_t>(r)];
    const int64_t from = static_cast<int64_t>(call.row[static_cast<size_t>(r)]) * l.stride;
    memcpy(&table[r * l.stride], &l.table[from], static_cast<size_t>(l.width) * sizeof(int32_t));
  }
  Exact<float> x = call.x, cos = call.cos, sin = call.sin;
  a.layers = layers.data();
  a.threads = threads;
  a.chained = chained;
  a.stores_only = stores_only;
  a.pages = l.pages;
  a.page_slots = l.page_slots;
  a.table = table.get();
  a.table_stride = l.stride;
  a.table_width = l.width;
  a.lengths = lengths.get();
  a.cos = cos.get();
  a.sin = sin.get();
  a.x = x.get();
  CHECK(fastdecode_decode_step(&a) == FASTDECODE_OK);
  for (int64_t i = 0; i < x.size(); ++i) CHECK(std::isfinite(x[i]));
  return x;
}

Exact<float> part_of(Exact<float>& all, int64_t row, int64_t width) {
  Exact<float> part(width);
  memcpy(part.get(), all.get() + row * width, part.bytes());
  return part;
}

// Every row of the model, or one.
Call call_of(Model& m, int64_t only = -1) {
  Call call;
  for (int64_t r = 0; r < m.args.rows; ++r) {
    if (only >= 0 && r != only) continue;
    call.row.push_back(static_cast<size_t>(r));
    call.length.push_back(m.lengths[static_cast<size_t>(r)]);
  }
  const int64_t d = m.args.head_dim;
  call.x = only < 0 ? m.x : part_of(m.x, only, m.args.hidden);
  call.cos = only < 0 ? m.cos : part_of(m.cos, only, d);
  call.sin = only < 0 ? m.sin : part_of(m.sin, only, d);
  return call;
}

// What an id of a row has stored, layer by layer.
std::vector<uint8_t> stored_of(const Model& m, Layout& l, size_t row, int64_t id) {
  std::vector<uint8_t> found;
  const int64_t bytes = m.args.head_dim * value_size(m.args.dtype);
  for (Exact<uint8_t>& storage : l.storage) {
    for (int64_t head = 0; head < m.args.kv_heads; ++head) {
      const int64_t page = l.of_row[row][static_cast<size_t>(id / l.page_slots)];
      const uint8_t* at = storage.get() + place_of(m, l, page, head, id % l.page_slots);
      found.insert(found.end(), at, at + bytes);
    }
  }
  return found;
}

// `after` is `before` but for the slots of the call's ids.
void check_untouched(const Model& m, Layout before, Layout& after, const Call& call) {
  const int64_t bytes = m.args.head_dim * value_size(m.args.dtype);
  for (size_t i = 0; i < call.row.size(); ++i) {
    for (size_t part = 0; part < after.storage.size(); ++part) {
      for (int64_t head = 0; head < m.args.kv_heads; ++head) {
        const size_t page = static_cast<size_t>(call.length[i] / after.page_slots);
        const int64_t at = place_of(m, after, after.of_row[call.row[i]][page], head,
                                    call.length[i] % after.page_slots);
        memcpy(&before.storage[part][at], &after.storage[part][at], static_cast<size_t>(bytes));
      }
    }
  }
  for (size_t part = 0; part < after.storage.size(); ++part) {
    CHECK(after.storage[part].same_bits(before.storage[part]));
  }
}

void check_step(Bytes& bytes, Model& m) {
  const int64_t rows = m.args.rows, hidden = m.args.hidden;
  const Call all = call_of(m);
  const Layout before = make_layout(bytes, m, 1);
  Layout first = before;
  Exact<float> out = feed(m, first, all, 1, false);
  check_untouched(m, before, first, all);

  Layout same = before;  // other threads, and as if the rows were chained
  CHECK(feed(m, same, all, static_cast<int32_t>(bytes.in(0, 4)), bytes.one_in(2)).same_bits(out));
  Layout other = make_layout(bytes, m, 1);
  CHECK(feed(m, other, all, 1, false).same_bits(out));
  for (size_t r = 0; r < static_cast<size_t>(rows); ++r) {
    const std::vector<uint8_t> stored = stored_of(m, first, r, m.lengths[r]);
    CHECK(stored == stored_of(m, same, r, m.lengths[r]));
    CHECK(stored == stored_of(m, other, r, m.lengths[r]));
  }
  if (rows == 0) return;
  const int64_t row = bytes.in(0, rows - 1);
  Layout lonely = before;
  Exact<float> alone = feed(m, lonely, call_of(m, row), 1, false);
  CHECK(memcmp(alone.get(), &out[row * hidden], alone.bytes()) == 0);
}

// Several ids of every row: as rows of one call, and one by one.
void check_chained(Bytes& bytes, Model& m) {
  const int64_t most = 4;
  std::vector<int64_t> count;
  Call all;
  for (size_t r = 0; r < m.lengths.size(); ++r) {
    count.push_back(bytes.in(0, most));
    for (int64_t i = 0; i < count.back(); ++i) {
      all.row.push_back(r);
      all.length.push_back(m.lengths[r] + i);
    }
  }
  const int64_t rows = static_cast<int64_t>(all.row.size());
  Random random(m.seed + 1);
  all.x = filled(rows * m.args.hidden, random);
  all.cos = filled(rows * m.args.head_dim, random);
  all.sin = filled(rows * m.args.head_dim, random);
  const Layout before = make_layout(bytes, m, most);
  Layout chained = before, stepped = before, stored = before;
  Exact<float> out = feed(m, chained, all, static_cast<int32_t>(bytes.in(0, 4)), true);
  check_untouched(m, before, chained, all);
  feed(m, stored, all, static_cast<int32_t>(bytes.in(0, 4)), true, true);
  for (int64_t i = 0; i < rows; ++i) {
    Call one;
    one.row = {all.row[static_cast<size_t>(i)]};
    one.length = {all.length[static_cast<size_t>(i)]};
    one.x = part_of(all.x, i, m.args.hidden);
    one.cos = part_of(all.cos, i, m.args.head_dim);
    one.sin = part_of(all.sin, i, m.args.head_dim);
    Exact<float> got = feed(m, stepped, one, 1, false);
    CHECK(memcmp(got.get(), &out[i * m.args.hidden], got.bytes()) == 0);
  }
  for (size_t part = 0; part < chained.storage.size(); ++part) {
    CHECK(chained.storage[part].same_bits(stepped.storage[part]));
    CHECK(chained.storage[part].same_bits(stored.storage[part]));
  }
}

// A broken step is refused with nothing written.
void check_broken_step(Bytes& bytes, Model& m) {
  Layout l = make_layout(bytes, m, 1);
  const Layout before = l;
  fastdecode_decode_args a = m.args;
  for (size_t i = 0; i < m.layers.size(); ++i) {
    m.layers[i].keys = l.storage[2 * i].get();
    m.layers[i].values = l.storage[2 * i + 1].get();
  }
  Exact<float> x = m.x;
  Exact<int64_t> lengths(a.rows);
  for (int64_t r = 0; r < a.rows; ++r) lengths[r] = m.lengths[static_cast<size_t>(r)];
  a.layers = m.layers.data();
  a.pages = l.pages;
  a.page_slots = l.page_slots;
  a.table = l.table.get();
  a.table_stride = l.stride;
  a.table_width = l.width;
  a.lengths = lengths.get();
  a.cos = m.cos.get();
  a.sin = m.sin.get();
  a.x = x.get();
  const int64_t what = bytes.in(0, 17), last = a.rows - 1;
  if ((what >= 11 && what < 17 && a.rows == 0) ||
      ((what == 5 || what == 10 || what == 17) && m.layers.empty())) {
    return;
  }
  fastdecode_weights how[7];
  bool broken = true;
  switch (what) {
    case 0:
      a.head_dim = bytes.of<int64_t>({-1, 0, 1, 3, INT64_MIN});
      break;
    case 1:
      a.kv_heads = bytes.of<int64_t>({0, -1, a.heads + 1, INT64_MIN});
      break;
    case 2:
      a.rows = bytes.of<int64_t>({-1, INT64_MIN});
      break;
    case 3:
      a.norm = nullptr;
      break;
    case 4:
      if (bytes.one_in(2)) {
        a.x = nullptr;
      } else {
        a.cos = nullptr;
      }
      broken = a.rows > 0;
      break;
    case 5:
      m.layers[0].down = nullptr;
      break;
    case 6:
      if (bytes.one_in(2)) {
        a.dtype = bytes.of<int32_t>({-1, 3, INT32_MAX});
      } else {
        a.activation = bytes.of<int64_t>({-1, 3, INT64_C(1) << 32, INT64_MAX, INT64_MIN});
      }
      break;
    case 7:
      a.size = static_cast<size_t>(bytes.of<int64_t>({0, 8, -1}));
      break;
    case 8:
      a.threads = -1;
      break;
    case 9:
      a.page_slots = bytes.of<int64_t>({0, -1, INT64_MIN});
      break;
    case 10:
      m.layers[0].k_norm = nullptr;
      m.layers[0].k_norm_bias = a.norm;
      break;
    case 11:
      lengths[last] = bytes.of<int64_t>({-1, l.width * l.page_slots, INT64_MAX, INT64_MIN});
      break;
    case 12:
      a.table_width = bytes.of<int64_t>({0, -1, lengths[last] / l.page_slots, INT64_MIN});
      break;
    case 13:
      a.table_stride = bytes.of<int64_t>({0, l.width - 1, -1, INT64_MIN});
      break;
    case 14:
      l.table[last * l.stride + bytes.in(0, lengths[last] / l.page_slots)] =
          bytes.of<int32_t>({-1, static_cast<int32_t>(l.pages), INT32_MAX, INT32_MIN});
      break;
    case 15:
      a.pages = bytes.of<int64_t>({-1, 0, INT64_MIN});
      break;
    case 17: {
      for (fastdecode_weights& one : how) one = {a.dtype, 0, nullptr, nullptr};
      how[bytes.in(0, 6)] = bytes.of<fastdecode_weights>({{-1, 0, nullptr, nullptr},
                                                          {7, 0, nullptr, nullptr},
                                                          {0, 32, nullptr, nullptr},
                                                          {3, 0, nullptr, nullptr},
                                                          {3, 0, a.norm, a.norm},
                                                          {4, 32, nullptr, nullptr},
                                                          {4, 33, a.norm, nullptr},
                                                          {5, 0, a.norm, nullptr},
                                                          {6, 0, nullptr, a.norm}});
      m.layers.back().weights = how;
      break;
    }
    default:
      a.hidden = bytes.of<int64_t>({0, -1, INT64_MIN});
  }
  if (!broken) return;
  check_refusal(fastdecode_decode_step(&a));
  CHECK(x.same_bits(m.x));
  for (size_t part = 0; part < l.storage.size(); ++part) {
    CHECK(l.storage[part].same_bits(before.storage[part]));
  }
}

}  // namespace

void fuzz_decode_step(Bytes& bytes) {
  Model m;
  make_model(bytes, m);
  const int64_t kind = bytes.in(0, 7);
  note(static_cast<uint64_t>(kind));
  if (kind == 0) return check_broken_step(bytes, m);
  note(static_cast<uint64_t>(m.args.rows * 4 + m.args.layer_count));
  note(static_cast<uint64_t>(m.args.head_dim));
  for_each_isa([&] { kind < 3 ? check_chained(bytes, m) : check_step(bytes, m); });
}

}  // namespace fuzz
