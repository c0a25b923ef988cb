// Ranking by words, against BM25 as its formula says it, over chunks cut from the turns themselves.
#include <gmock/gmock.h>
#include <gtest/gtest.h>

#include <algorithm>
#include <cmath>
#include <map>
#include <random>
#include <set>
#include <string>

#include "memstore/catalog.h"
#include "memstore/lexical_index.h"
#include "memstore/lexical_rows.h"
#include "memstore/rows.h"
#include "memstore/store.h"
#include "tests/memstore/many_pages_fixture.h"
#include "tests/support/files_with.h"
#include "tests/support/temp_dir.h"

namespace recalld {
namespace {

using ::testing::ElementsAre;
using ::testing::HasSubstr;
using ::testing::IsEmpty;

constexpr uint64_t page_chunks = 2;  // and 512 make a span of pages

// The words of chunks as they follow from the turns, without a journal.
std::vector<ChunkWords> words_of(const std::vector<std::string>& contents, uint64_t end_token) {
  std::vector<std::vector<Term>> terms((end_token + chunk_tokens - 1) / chunk_tokens);
  WordReader reader;
  uint64_t token = 0;
  for (const std::string& content : contents) {
    const NewTurn turn = ManyPagesModel::user_turn(content);
    const std::string text = stream_text(turn.turn);
    std::vector<Word> words;
    reader.read(text, 0, text.size(), words);
    size_t of = 0;
    for (const Word& word : words) {
      while (turn.ends[of] <= word.begin) ++of;
      const uint64_t chunk = (token + of) / chunk_tokens;
      if (token + of < end_token) terms[chunk].push_back(word.term);
    }
    token += turn.ids.size();
  }
  std::vector<ChunkWords> out;
  for (auto& of_chunk : terms) out.push_back(ChunkWords::of(std::move(of_chunk)));
  return out;
}

struct Scored {
  uint64_t chunk = 0;
  double bm25 = 0, context = 0;
  double total(double weight) const { return bm25 + weight * context; }
};

// BM25 with k1 1.2 and b 0.75 of every chunk, by its formula.
std::vector<Scored> by_formula(const std::vector<ChunkWords>& chunks, const std::string& query) {
  const double n = static_cast<double>(chunks.size()), k1 = 1.2, b = 0.75;
  const auto count_of = [&](int64_t chunk, Term term) -> double {
    if (chunk < 0 || chunk >= static_cast<int64_t>(chunks.size())) return 0;
    for (const auto& each : chunks[static_cast<size_t>(chunk)].terms)
      if (each.term == term) return each.count;
    return 0;
  };
  const auto length_of = [&](int64_t chunk) -> double {
    return chunk < 0 || chunk >= static_cast<int64_t>(chunks.size()) ? 0 : chunks[static_cast<size_t>(chunk)].words;
  };
  double lengths = 0, contexts = 0;
  for (int64_t i = 0; i < static_cast<int64_t>(chunks.size()); ++i) {
    lengths += length_of(i);
    contexts += length_of(i - 1) + length_of(i) + length_of(i + 1);
  }
  std::map<Term, double> frequency;
  for (const Term term : WordReader().terms(query)) {
    for (int64_t i = 0; i < static_cast<int64_t>(chunks.size()); ++i)
      if (count_of(i, term) > 0) ++frequency[term];
  }
  std::vector<Scored> out(chunks.size());
  for (int64_t i = 0; i < static_cast<int64_t>(chunks.size()); ++i) {
    Scored& score = out[static_cast<size_t>(i)];
    score.chunk = static_cast<uint64_t>(i);
    for (const auto& [term, df] : frequency) {
      const double idf = std::log(1 + (n - df + 0.5) / (df + 0.5));
      const double alone = count_of(i, term), all = count_of(i - 1, term) + alone + count_of(i + 1, term);
      const double all_length = length_of(i - 1) + length_of(i) + length_of(i + 1);
      score.bm25 += idf * alone * (k1 + 1) / (alone + k1 * (1 - b + b * length_of(i) / (lengths / n)));
      score.context += idf * all * (k1 + 1) / (all + k1 * (1 - b + b * all_length / (contexts / n)));
    }
  }
  return out;
}

// Words of which few are frequent and many are rare.
class Talk {
 public:
  explicit Talk(uint64_t seed) : random_(seed) {}
  std::string word() {
    const double u = static_cast<double>(random_() % 1'000'000 + 1) / 1e6;
    return word(static_cast<uint64_t>(std::pow(400.0, u)) - 1);
  }
  static std::string word(uint64_t number) {
    std::string word = "q";
    for (uint64_t left = number + 1; left > 0; left /= 5) word += "aeiou"[left % 5], word += "kx"[left % 2];
    return word;
  }
  std::string turn(size_t words) {
    std::string text = word();
    for (size_t i = 1; i < words; ++i) text += (random_() % 9 == 0 ? ", " : " ") + word();
    return text;
  }
  std::mt19937_64 random_;
};

class StoreLexicalTest : public ManyPagesTest {
 protected:
  LexicalRanking rank(MemoryId id, const std::string& query, size_t k, float weight = 1,
                      std::span<const uint64_t> also = {}) {
    const auto memory = store_->memory(id);
    const auto ranking = store_->lexical_top_k(
        id, {.text = query, .end_token = memory->tokens, .k = k, .context_weight = weight, .also = also});
    if (!ranking) throw std::runtime_error(ranking.error().message);
    return *ranking;
  }

  // The best of a memory are what the formula says of these turns.
  void expect_formula(MemoryId id, const std::vector<std::string>& contents, const std::string& query, size_t k,
                      float weight) {
    const auto memory = store_->memory(id);
    auto expected = by_formula(words_of(contents, memory->tokens), query);
    std::vector<uint64_t> all;
    for (const Scored& each : expected) all.push_back(each.chunk);
    const LexicalRanking ranking = rank(id, query, k, weight, all);
    ASSERT_EQ(ranking.also.size(), all.size());
    for (size_t i = 0; i < all.size(); ++i) {
      EXPECT_EQ(ranking.also[i].chunk, i);
      EXPECT_NEAR(ranking.also[i].bm25, expected[i].bm25, 2e-4) << query << ", chunk " << i;
      EXPECT_NEAR(ranking.also[i].context, expected[i].context, 2e-4) << query << ", chunk " << i;
    }
    // Exactly the k best of these, equal ones by number.
    std::vector<LexicalScore> best = ranking.also;
    const auto total = [&](const LexicalScore& each) { return each.bm25 + weight * each.context; };
    std::erase_if(best, [&](const LexicalScore& each) { return total(each) <= 0; });
    std::ranges::stable_sort(best, std::ranges::greater{}, total);
    if (best.size() > k) best.resize(k);
    EXPECT_EQ(ranking.best, best) << query;
    EXPECT_EQ(ranking.unindexed_chunks, 0u);
    EXPECT_THAT(ranking.unreadable, IsEmpty());
  }

  // All rows of `postings` of the closed store.
  std::map<std::string, std::string> rows() {
    store_.reset();
    std::map<std::string, std::string> out;
    {
      const auto catalog = Catalog::open({catalog_data(), 4 << 20, 1 << 20});
      Catalog::Cursor all = (*catalog)->cursor(Family::postings, "");
      for (auto found = all.first(); found && *found; found = all.next()) out.emplace(all.key(), all.value());
    }
    open();
    return out;
  }
  void change_rows(const std::function<void(Catalog::Batch&)>& change) {
    store_.reset();
    {
      const auto catalog = Catalog::open({catalog_data(), 4 << 20, 1 << 20});
      Catalog::Batch batch(**catalog);
      change(batch);
      ASSERT_TRUE((*catalog)->write(batch));
    }
    open();
  }
  // Indexes what is not; returns how many pages that was.
  size_t index(MemoryId id) {
    size_t pages = 0;
    const auto memory = store_->memory(id);
    for (std::optional<uint64_t> page = 0; page; ++pages) {
      const auto next = store_->index_words(memory->serving, *page);
      if (!next) throw std::runtime_error(next.error().message);
      page = *next;
    }
    return pages - 1;
  }
};

TEST_F(StoreLexicalTest, RanksAsTheFormulaSays) {
  for (const uint64_t seed : {1, 2, 3, 4, 5, 6}) {
    Talk talk(seed);
    std::vector<std::string> contents;
    const std::string name = "m" + std::to_string(seed);
    MemoryId id = 0;
    const size_t turns = seed * seed * 12 + (seed == 6 ? 300 : 0);  // the last one has more than a span of pages
    for (size_t i = 0; i < turns; ++i) contents.push_back(talk.turn(1 + talk.random_() % 60));
    for (size_t i = 0; i < turns; i += 7) {
      id = append(name, {contents.begin() + static_cast<ptrdiff_t>(i),
                         contents.begin() + static_cast<ptrdiff_t>(std::min(turns, i + 7))});
      if (talk.random_() % 2 == 0) settle(id);
    }
    // What waits is scored by its text.
    for (int i = 0; i < 12; ++i) {
      const size_t words = 1 + talk.random_() % 6;
      expect_formula(id, contents, talk.turn(words), 1 + talk.random_() % 12, i % 3 == 0 ? 0.5f : 1.0f);
    }
    settle(id);
    for (int i = 0; i < 12; ++i) expect_formula(id, contents, talk.turn(1 + i % 6), 1 + talk.random_() % 12, 1);
    expect_formula(id, contents, Talk::word(0) + " " + Talk::word(1), 5, 1);
    expect_formula(id, contents, "nowhere", 5, 1);
    if (HasFailure()) FAIL() << "seed " << seed;
  }
}

TEST_F(StoreLexicalTest, RanksTheSameWhateverItKeepsInRam) {
  Talk talk(9);
  std::vector<std::string> contents;
  for (int i = 0; i < 300; ++i) contents.push_back(talk.turn(30));
  const MemoryId id = append("m", contents);
  settle(id);
  const uint64_t chunks = store_->memory(id)->encoded_chunks;
  store_.reset();
  const auto catalog = Catalog::open({catalog_data(), 4 << 20, 1 << 20});
  const std::vector<Extent> extents{{0, id}};
  const std::vector<uint64_t> also{0, 5, chunks - 1};
  for (int i = 0; i < 20; ++i) {
    const std::vector<Term> terms = WordReader().terms(talk.turn(5));
    const LexicalIndex::Chunks all{.extents = extents, .stored = chunks, .tail = {}, .hidden = {}};
    const auto rank = [&](uint64_t rows_bytes_max) {
      auto ranked = LexicalIndex(**catalog, page_chunks, rows_bytes_max).rank(all, terms, 10, 1);
      return ranked ? (*ranked)->with(also) : Expected<LexicalRanking>(std::unexpected(ranked.error()));
    };
    const auto roomy = rank(64 << 20);
    ASSERT_TRUE(roomy);
    ASSERT_FALSE(roomy->best.empty());
    for (const uint64_t bytes : {0, 1'000, 5'000, 20'000}) {
      const auto tight = rank(bytes);
      ASSERT_TRUE(tight);
      EXPECT_EQ(tight->best, roomy->best) << bytes;
      EXPECT_EQ(tight->also, roomy->also) << bytes;
    }
  }
}

TEST_F(StoreLexicalTest, ErasesTheRowsOfThesePagesAlone) {
  store_.reset();
  const auto catalog = Catalog::open({directory_.path() / "rows", 4 << 20, 1 << 20});
  ASSERT_TRUE(catalog);
  const LexicalIndex index(**catalog, 2, 1 << 20);
  constexpr uint64_t pages = 3 * span_pages + 7;
  const auto stage = [&](StreamId stream) {
    const std::vector<ChunkWords> chunks(2 * pages + 1, ChunkWords::of({5, 77, 77}));
    Catalog::Batch batch(**catalog);
    ASSERT_TRUE(index.stage(stream, 0, chunks, {}, batch));
    ASSERT_TRUE((*catalog)->write(batch));
  };
  const auto left = [&](StreamId stream) {
    std::vector<uint64_t> numbers;
    Catalog::Cursor rows = (*catalog)->cursor(Family::postings, row_key(stream));
    for (auto found = rows.first(); found && *found; found = rows.next()) {
      const auto key = decode_posting_key(rows.key());
      if (key->small || key->term == 77) numbers.push_back(key->page);
    }
    return numbers;
  };
  using Range = std::pair<uint64_t, uint64_t>;
  for (const auto& [first, end] : {Range{0, 3}, Range{10, span_pages}, Range{span_pages, 2 * span_pages},
                                   Range{10, 2 * span_pages + 9}, Range{span_pages - 1, LexicalIndex::all_pages},
                                   Range{0, LexicalIndex::all_pages}, Range{pages, LexicalIndex::all_pages}}) {
    stage(8);
    stage(9);
    std::vector<uint64_t> expected;
    for (uint64_t page = 0; page <= pages; ++page)
      if (page < first || page >= end) expected.push_back(page);
    ASSERT_TRUE(index.erase(8, first, end, **catalog));
    EXPECT_EQ(left(8), expected) << first << " to " << end;
    EXPECT_EQ(left(9).size(), pages + 1);
  }
}

TEST_F(StoreLexicalTest, GivesAWordToTheChunkInWhichItBegins) {
  // 64 tokens of 3 bytes are 192 bytes; "User: " are the first 6.
  std::string content(183, '.');
  content += " lighthouse beacon" + std::string(300, '.');
  const MemoryId id = append("m", {content});
  settle(id);
  const auto passage = store_->passage(id, 0, 64);
  ASSERT_TRUE(passage->text.ends_with(" li")) << passage->text;
  ASSERT_EQ(rank(id, "lighthouse", 1).best.front().chunk, 0u);
  EXPECT_GT(rank(id, "lighthouse", 1).best.front().bm25, 0);
  ASSERT_EQ(rank(id, "beacon", 1).best.front().chunk, 1u);
  EXPECT_THAT(rank(id, "ghthouse", 1).best, IsEmpty());
  EXPECT_THAT(rank(id, "li", 1).best, IsEmpty());
}

TEST_F(StoreLexicalTest, MakesTheSameRowsHoweverItWasAppended) {
  Talk talk(3);
  std::vector<std::string> contents;
  for (int i = 0; i < 120; ++i) contents.push_back(talk.turn(1 + talk.random_() % 50));
  contents.push_back(std::string(70'000, 'y') + " " + talk.turn(5'000));  // in pieces
  std::vector<std::map<std::string, std::string>> made;
  std::vector<LexicalRanking> ranked;
  for (const size_t at_once : {1, 10, 1000}) {
    store_.reset();
    std::filesystem::remove_all(data());
    open();
    MemoryId id = 0;
    for (size_t i = 0; i < contents.size(); i += at_once) {
      id = append("m", {contents.begin() + static_cast<ptrdiff_t>(i),
                        contents.begin() + static_cast<ptrdiff_t>(std::min(contents.size(), i + at_once))});
      if (at_once == 1) {
        ASSERT_TRUE(Model::encode(*store_, store_->memory(id)->serving, 1));
      }
    }
    settle(id);
    ranked.push_back(rank(id, Talk::word(3) + " " + Talk::word(77), 20));
    auto all = rows();
    std::erase_if(all, [](const auto& row) { return decode_posting_key(row.first)->small; });  // one a write
    made.push_back(std::move(all));
  }
  ASSERT_GT(made[0].size(), 1'000u);
  for (size_t i = 1; i < made.size(); ++i) {
    EXPECT_EQ(made[i], made[0]);
    EXPECT_EQ(ranked[i].best, ranked[0].best);
  }
}

TEST_F(StoreLexicalTest, FindsForgottenTurnsNeverAgain) {
  Talk talk(5);
  std::vector<std::string> contents;
  for (int i = 0; i < 200; ++i) contents.push_back(talk.turn(20));
  contents[90] = "the secret word is xylophone47 " + talk.turn(5);
  contents[150] = "another is marmalade " + talk.turn(5);
  const MemoryId id = append("m", contents);
  settle(id);
  ASSERT_FALSE(rank(id, "xylophone47", 3).best.empty());
  const uint64_t chunk = rank(id, "xylophone47", 3).best[0].chunk;

  ASSERT_TRUE(store_->forget(id, std::array{TurnRange{90, 90}}));
  // While its chunks serve still.
  EXPECT_THAT(rank(id, "xylophone47", 3).best, IsEmpty());
  EXPECT_EQ(rank(id, "xylophone47", 3, 1, std::array{chunk}).also[0].context, 0);
  EXPECT_FALSE(rank(id, "marmalade", 3).best.empty());

  settle(id);
  contents.erase(contents.begin() + 90);
  EXPECT_THAT(rank(id, "xylophone47", 3).best, IsEmpty());
  expect_formula(id, contents, "marmalade " + Talk::word(5), 10, 1);
  const auto verified = store_->verify(id, {});
  ASSERT_TRUE(verified);
  EXPECT_THAT(verified->problems, IsEmpty());

  // No row has the term, nor has any file its bytes.
  const Term term = WordReader().terms("xylophone47").front();
  std::string key, value;
  ByteWriter(key).key64(term);
  ByteWriter(value).u64(term);
  for (const auto& [row, of] : rows()) EXPECT_NE(decode_posting_key(row)->term, term);
  store_.reset();
  EXPECT_EQ(count_in_files(data(), {key, value}), 0u);
}

TEST_F(StoreLexicalTest, ARankingThatWasBegunEndsAsOneThatWasNot) {
  Talk talk(12);
  std::vector<std::string> contents;
  for (int i = 0; i < 200; ++i) contents.push_back(talk.turn(20));
  contents[90] = "the secret word is xylophone47 " + talk.turn(5);
  const MemoryId id = append("m", contents);
  settle(id);
  const std::vector<uint64_t> also{0, 3, 17};
  const std::string text = "xylophone47 " + talk.turn(4);
  ChunkSet odd(1'000);
  for (uint64_t chunk = 1; chunk < 1'000; chunk += 2) odd.add(chunk, chunk + 1);
  const uint64_t tokens = store_->memory(id)->tokens;
  const auto ranked = [&](const LexicalQuery& query, const LexicalQuery& begun_for, auto meanwhile) {
    auto begun = store_->begin_lexical(id, begun_for);
    EXPECT_TRUE(begun);
    meanwhile();
    const auto with = store_->lexical_top_k(id, query, *std::move(begun)), without = store_->lexical_top_k(id, query);
    EXPECT_TRUE(with && without);
    EXPECT_EQ(with->best, without->best);
    EXPECT_EQ(with->also, without->also);
    return with->best;
  };
  const auto nothing = [] {};
  const LexicalQuery all{.text = text, .end_token = tokens, .k = 10, .also = also};
  LexicalQuery of_odd = all, shorter = all, of_even = all;
  ChunkSet even(1'000);
  for (uint64_t chunk = 0; chunk < 1'000; chunk += 2) even.add(chunk, chunk + 1);
  of_odd.only = &odd;
  of_even.only = &even;
  shorter.end_token = 40 * chunk_tokens;
  for (const LexicalQuery& query : {all, of_odd, of_even, shorter})
    for (const LexicalQuery& begun_for : {all, of_odd, of_even, shorter})
      EXPECT_FALSE(ranked(query, begun_for, nothing).empty());
  const auto found = ranked(all, all, nothing);
  const auto left = ranked(all, all, [&] { ASSERT_TRUE(store_->forget(id, std::array{TurnRange{90, 90}})); });
  EXPECT_NE(left, found);  // the begun one knew what was forgotten
}

TEST_F(StoreLexicalTest, RemovesTheWordsOfAMemoryWithIt) {
  Talk talk(6);
  const MemoryId kept = append("kept", {talk.turn(2'000)});
  const MemoryId gone = append("gone", {talk.turn(9'000)});
  settle(kept);
  settle(gone);
  ASSERT_TRUE(store_->erase("gone"));
  for (const auto& [row, value] : rows()) EXPECT_NE(number_of(row_key(0) + row), gone);
  EXPECT_FALSE(rank(kept, Talk::word(0), 3).best.empty());
}

TEST_F(StoreLexicalTest, IndexesWhatAnEarlierVersionEncoded) {
  Talk talk(7);
  std::vector<std::string> contents;
  for (int i = 0; i < 150; ++i) contents.push_back(talk.turn(40));
  const MemoryId id = append("m", contents);
  settle(id);
  const auto before = rows();
  const uint64_t chunks = store_->memory(id)->encoded_chunks;
  ASSERT_EQ(chunks % page_chunks, 1u);
  EXPECT_EQ(index(id), 0u);

  change_rows([&](Catalog::Batch& batch) { batch.remove_all(Family::postings, row_key(id)); });
  const std::string query = Talk::word(0) + " " + Talk::word(40);
  EXPECT_EQ(rank(id, query, 5).unindexed_chunks, chunks);
  const auto unindexed = store_->verify(id, {});  // which is no damage
  ASSERT_TRUE(unindexed);
  EXPECT_THAT(unindexed->problems, IsEmpty());
  EXPECT_EQ(unindexed->unindexed_chunks, chunks);
  // What is appended meanwhile is found, and the page that it fills is made whole.
  contents.push_back("lanterns everywhere " + talk.turn(200));
  append("m", {contents.back()});
  settle(id);
  EXPECT_EQ(rank(id, query, 5).unindexed_chunks, chunks / page_chunks * page_chunks);
  EXPECT_THAT(store_->verify(id, {})->problems, IsEmpty());
  ASSERT_FALSE(rank(id, "lantern", 5).best.empty());
  EXPECT_EQ(index(id), chunks / page_chunks);
  expect_formula(id, contents, query + " lantern", 10, 1);
  EXPECT_EQ(store_->verify(id, {})->unindexed_chunks, 0u);
  auto after = rows();
  for (const auto& [key, value] : before) {
    if (decode_posting_key(key)->small) continue;
    EXPECT_EQ(after[key], value);
  }
}

TEST_F(StoreLexicalTest, TellsDamageAndMakesRowsAgain) {
  Talk talk(8);
  std::vector<std::string> contents;
  for (int i = 0; i < 150; ++i) contents.push_back(talk.turn(40));
  const MemoryId id = append("m", contents);
  settle(id);
  const auto before = rows();
  const std::string query = Talk::word(0);
  const Term term = WordReader().terms(query).front();
  const auto verify = [&] {
    const auto verified = store_->verify(id, {});
    if (!verified) throw std::runtime_error(verified.error().message);
    return *verified;
  };
  ASSERT_THAT(verify().problems, IsEmpty());

  // A row that is missing, of words and of how many there are; one too many. All rows of the page that is not full are
  // missing, as if it had never been indexed.
  const uint64_t chunks = store_->memory(id)->encoded_chunks;
  change_rows([&](Catalog::Batch& batch) {
    batch.remove(Family::postings, posting_key(id, 3, term));
    batch.remove(Family::postings, posting_key(id, 9, lengths_term));
    batch.remove_range(Family::postings, small_rows_key(id), row_key(id + 1));
    batch.put(Family::postings, posting_key(id, 5'000, term), "\x01\x01\x02");
    batch.put(Family::postings, posting_key(id, 70, term), "no row");
  });
  const auto found = verify();
  ASSERT_EQ(found.lost.size(), 1u);
  EXPECT_THAT(found.lost[0].words, ElementsAre(3, 9, 70));
  EXPECT_EQ(found.unindexed_chunks, chunks % page_chunks);
  EXPECT_TRUE(found.lost[0].strays);
  EXPECT_EQ(found.problems.front().part, "words");
  EXPECT_EQ(found.problems.front().first, 6u);
  EXPECT_EQ(found.problems.front().last, 7u);
  EXPECT_TRUE(found.problems.front().repairable);
  EXPECT_EQ(rank(id, query, 5).unindexed_chunks, page_chunks + chunks % page_chunks);

  ASSERT_TRUE(store_->drop(found.lost[0]));
  EXPECT_EQ(index(id), 4u);
  EXPECT_THAT(verify().problems, IsEmpty());
  expect_formula(id, contents, query, 10, 1);
  auto after = rows();
  for (const auto& [key, value] : before) {
    if (decode_posting_key(key)->small) continue;
    EXPECT_EQ(after[key], value);
  }
}

}  // namespace
}  // namespace recalld
