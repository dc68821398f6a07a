// Depth in metres of one moment of a rig, from a file of `surround export`: onnxruntime's C++ API and C++17 alone.
//
//     depth student.onnx --out seen front=1266.4:front.ppm right=1260.8:right.ppm ...
//
// Each camera is given by its name in the file, its focal length fx in pixels of the image, and the image, free of
// distortion: a binary PPM (P6, 8 bits), which is a short header before the raw RGB of a camera: no image library is
// needed. A camera that is left out is missing. Writes OUT/CAMERA.npy: float32, H x W of the image, metres along the
// optical axis, as `surround predict --write npy` does. On a vehicle, make one Student and call `look` at each moment.

#include <onnxruntime_cxx_api.h>

#include <algorithm>
#include <array>
#include <atomic>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <cstdio>
#include <exception>
#include <filesystem>
#include <fstream>
#include <functional>
#include <map>
#include <sstream>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

namespace {

// The file, an image or an argument cannot be used here; the message says why.
struct DeployError : std::runtime_error {
  using std::runtime_error::runtime_error;
};

struct Image {  // RGB, row by row
  int height = 0, width = 0;
  std::vector<std::uint8_t> rgb;
};

struct DepthMap {  // metres, row by row
  int height = 0, width = 0;
  std::vector<float> depth_m;
};

struct Photo {
  double focal_px = 0;  // fx, in pixels of the image
  std::filesystem::path path;
};

int thread_count() { return std::max(1u, std::thread::hardware_concurrency()); }

// Calls work(0) to work(count - 1), on as many threads as there are cores; the first exception is thrown again.
void in_parallel(int count, const std::function<void(int)>& work) {
  std::atomic<int> next{0};
  std::exception_ptr failure;
  std::atomic<bool> failed{false};
  const auto run = [&] {
    for (int i = next++; i < count && !failed; i = next++) {
      try {
        work(i);
      } catch (...) {
        if (!failed.exchange(true)) failure = std::current_exception();
      }
    }
  };
  std::vector<std::thread> helpers;
  for (int i = 1; i < std::min(count, thread_count()); ++i) helpers.emplace_back(run);
  run();
  for (auto& helper : helpers) helper.join();
  if (failure) std::rethrow_exception(failure);
}

// ---- Metadata: JSON, of which the file uses texts, numbers and lists of them ----

std::vector<std::string> json_texts(const std::string& json) {
  std::vector<std::string> texts;
  for (std::size_t at = json.find('"'); at != std::string::npos; at = json.find('"', at + 1)) {
    std::string text;
    for (++at; at < json.size() && json[at] != '"'; ++at) {
      if (json[at] == '\\' && ++at < json.size() && json[at] != '"' && json[at] != '\\' && json[at] != '/')
        throw DeployError("metadata: this example reads plain ASCII texts only, found " + json);
      text += json[at];
    }
    texts.push_back(text);
  }
  return texts;
}

std::vector<int> json_whole_numbers(const std::string& json) {
  std::string separated = json;
  std::replace_if(separated.begin(), separated.end(), [](char c) { return c == '[' || c == ']' || c == ','; }, ' ');
  std::istringstream stream(separated);
  std::vector<int> numbers;
  for (int number; stream >> number;) numbers.push_back(number);
  return numbers;
}

// ---- Files ----

Image read_ppm(const std::filesystem::path& path) {
  const std::string where = path.string();
  std::ifstream stream(path, std::ios::binary);
  if (!stream) throw DeployError(where + ": expected an image, found no file");
  // A comment of the header goes from # to the end of its line.
  const auto token = [&stream] {
    std::string word;
    while (stream >> word && word[0] == '#') std::getline(stream, word);
    return word;
  };
  Image image;
  const std::string magic = token();
  int largest = 0;
  std::istringstream(token()) >> image.width;
  std::istringstream(token()) >> image.height;
  std::istringstream(token()) >> largest;
  if (magic != "P6" || image.width < 1 || image.height < 1 || image.width > 16384 || image.height > 16384 ||
      largest != 255)
    throw DeployError(where + ": expected a binary PPM (P6) of 8 bits per colour and at most 16384 pixels a side");
  stream.get();  // the one space before the pixels
  image.rgb.resize(std::size_t{3} * image.height * image.width);
  stream.read(reinterpret_cast<char*>(image.rgb.data()), static_cast<std::streamsize>(image.rgb.size()));
  if (!stream) throw DeployError(where + ": the image ends early; write it again");
  return image;
}

void write_npy(const std::filesystem::path& path, const DepthMap& map) {
  std::string header = "{'descr': '<f4', 'fortran_order': False, 'shape': (" + std::to_string(map.height) + ", " +
                       std::to_string(map.width) + "), }";
  header.append(63 - (10 + header.size()) % 64, ' ');  // the data begin at a multiple of 64 bytes
  header += '\n';
  std::ofstream stream(path, std::ios::binary);
  stream.write("\x93NUMPY\x01\x00", 8);
  stream.put(static_cast<char>(header.size() & 0xff)).put(static_cast<char>(header.size() >> 8));
  stream << header;
  stream.write(reinterpret_cast<const char*>(map.depth_m.data()),  // of a little-endian machine, as x86 and ARM are
               static_cast<std::streamsize>(sizeof(float) * map.depth_m.size()));
  if (!stream.flush()) throw DeployError(path.string() + ": cannot be written");
}

// ---- Stretching ----

// Weights of the input pixels that make one output pixel; they sum to 1 << kPrecisionBits, up to rounding.
struct Weights {
  int first = 0;
  std::vector<int> weights;
};

constexpr int kPrecisionBits = 22;

double bicubic(double x) {
  constexpr double a = -0.5;
  x = std::abs(x);
  if (x < 1) return ((a + 2) * x - (a + 3)) * x * x + 1;
  if (x < 2) return (((x - 5) * x + 8) * x - 4) * a;
  return 0;
}

// Antialiased bicubic weights from `in` to `out` pixels, computed and rounded as Pillow does.
std::vector<Weights> bicubic_weights(int in, int out) {
  const double scale = static_cast<double>(in) / out, filter_scale = std::max(scale, 1.0);
  const double support = 2 * filter_scale;
  std::vector<Weights> table(out);
  for (int i = 0; i < out; ++i) {
    const double center = (i + 0.5) * scale;
    const int first = std::max(0, static_cast<int>(center - support + 0.5));
    const int end = std::min(in, static_cast<int>(center + support + 0.5));
    std::vector<double> exact;
    double sum = 0;
    for (int x = first; x < end; ++x) {
      exact.push_back(bicubic((x - center + 0.5) * (1 / filter_scale)));
      sum += exact.back();
    }
    table[i].first = first;
    for (const double weight : exact) {
      const double scaled = (weight / sum) * (1 << kPrecisionBits);
      table[i].weights.push_back(static_cast<int>(scaled < 0 ? scaled - 0.5 : scaled + 0.5));
    }
  }
  return table;
}

std::uint8_t rounded(int sum) {
  return static_cast<std::uint8_t>(std::clamp((sum + (1 << (kPrecisionBits - 1))) >> kPrecisionBits, 0, 255));
}

Image stretched(const Image& image, int height, int width) {
  Image narrow{image.height, width, image.rgb};
  if (image.width != width) {
    const auto table = bicubic_weights(image.width, width);
    narrow.rgb.resize(std::size_t{3} * image.height * width);
    for (int y = 0; y < image.height; ++y) {
      const std::uint8_t* row = &image.rgb[std::size_t{3} * y * image.width];
      std::uint8_t* out = &narrow.rgb[std::size_t{3} * y * width];
      for (const auto& [first, weights] : table) {
        std::array<int, 3> sums{};
        const std::uint8_t* pixel = row + 3 * first;
        for (const int weight : weights)
          for (int& sum : sums) sum += weight * *pixel++;
        for (const int sum : sums) *out++ = rounded(sum);
      }
    }
  }
  if (image.height == height) return narrow;
  const std::size_t row_bytes = std::size_t{3} * width;
  const auto table = bicubic_weights(image.height, height);
  Image result{height, width, std::vector<std::uint8_t>(height * row_bytes)};
  std::vector<int> sums(row_bytes);
  for (int y = 0; y < height; ++y) {
    std::fill(sums.begin(), sums.end(), 0);
    for (std::size_t k = 0; k < table[y].weights.size(); ++k) {
      const std::uint8_t* row = &narrow.rgb[(table[y].first + k) * row_bytes];
      for (std::size_t x = 0; x < row_bytes; ++x) sums[x] += table[y].weights[k] * row[x];
    }
    std::transform(sums.begin(), sums.end(), &result.rgb[y * row_bytes], rounded);
  }
  return result;
}

// Depth resized to an image: bilinear between pixel centres at half-integers, without antialiasing.
DepthMap at_image_size(const float* depth_m, int from_height, int from_width, int height, int width) {
  struct Place {
    int low, high;
    double share;  // of high
  };
  const auto places = [](int from, int to) {
    std::vector<Place> found;
    for (int i = 0; i < to; ++i) {
      const double at = (i + 0.5) * (static_cast<double>(from) / to) - 0.5, low = std::floor(at);
      const int index = static_cast<int>(low);
      found.push_back({std::max(index, 0), std::min(index + 1, from - 1), at - low});
    }
    return found;
  };
  const auto columns = places(from_width, width), rows = places(from_height, height);
  DepthMap map{height, width, {}};
  map.depth_m.reserve(std::size_t{1} * height * width);
  for (const Place& row : rows) {
    const float* above = depth_m + std::size_t{1} * row.low * from_width;
    const float* below = depth_m + std::size_t{1} * row.high * from_width;
    for (const Place& column : columns) {
      const double first = above[column.low] + (above[column.high] - double{above[column.low]}) * column.share;
      const double second = below[column.low] + (below[column.high] - double{below[column.low]}) * column.share;
      map.depth_m.push_back(static_cast<float>(first + (second - first) * row.share));
    }
  }
  return map;
}

// ---- The student ----

class Student {
 public:
  explicit Student(const std::filesystem::path& path) : environment_(ORT_LOGGING_LEVEL_ERROR, "surround") {
    open(path, thread_count());
    if (about("format") != "\"surround-export/1\"")
      throw DeployError(path.string() + ": expected a file of `surround export` (surround-export/1)");
    require_right_here();
    if (about("batch") != "1" && about("batch") != "\"dynamic\"")
      throw DeployError(path.string() + ": expected --batch 1 or dynamic, found " + about("batch") + " rigs per call");
    cameras_ = json_texts(about("cameras"));
    const auto size = json_whole_numbers(about("input_size"));
    const auto views = json_whole_numbers(about("views_per_call"));
    if (size.size() != 2 || views.size() != 1 || cameras_.empty())
      throw DeployError(path.string() + ": its metadata are damaged; export it again");
    height_ = size[0], width_ = size[1], views_per_call_ = views[0];
    if (views_per_call_ == 1) open(path, 1);  // as many cameras at a time as there are threads, each on one
  }

  // Depth of each image, at the size of the image, by the name of its camera.
  std::map<std::string, DepthMap> look(const std::map<std::string, Photo>& photos) const {
    const int view_count = static_cast<int>(cameras_.size());
    for (const auto& photo : photos)
      if (std::find(cameras_.begin(), cameras_.end(), photo.first) == cameras_.end())
        throw DeployError("there is no camera " + photo.first + "; expected cameras of " + about("cameras"));
    const std::size_t plane = std::size_t{1} * height_ * width_;
    std::vector<std::uint8_t> image(3 * plane * view_count, 0);
    std::vector<float> focal_px(view_count, 0);  // 0: the camera is missing
    std::vector<std::array<int, 2>> native(view_count);
    in_parallel(view_count, [&](int i) {
      const auto found = photos.find(cameras_[i]);
      if (found == photos.end()) return;
      const Image whole = read_ppm(found->second.path);
      const Image small = stretched(whole, height_, width_);
      for (std::size_t pixel = 0; pixel < plane; ++pixel)
        for (std::size_t colour = 0; colour < 3; ++colour)
          image[(3 * i + colour) * plane + pixel] = small.rgb[3 * pixel + colour];
      focal_px[i] = static_cast<float>(found->second.focal_px * (static_cast<double>(width_) / whole.width));
      native[i] = {whole.height, whole.width};
    });
    std::vector<float> depth_m(plane * view_count);
    in_parallel(view_count / views_per_call_, [&](int call) {
      const int first = call * views_per_call_;
      run(&image[3 * plane * first], &focal_px[first], &depth_m[plane * first]);
    });
    std::vector<DepthMap> maps(view_count);
    in_parallel(view_count, [&](int i) {
      if (focal_px[i] > 0) maps[i] = at_image_size(&depth_m[plane * i], height_, width_, native[i][0], native[i][1]);
    });
    std::map<std::string, DepthMap> seen;
    for (int i = 0; i < view_count; ++i)
      if (focal_px[i] > 0) seen[cameras_[i]] = std::move(maps[i]);
    return seen;
  }

 private:
  void open(const std::filesystem::path& path, int threads) {
    Ort::SessionOptions options;
    options.SetIntraOpNumThreads(threads);
    session_ = Ort::Session(environment_, path.c_str(), options);
  }

  // What the file says of itself, as JSON; docs/EXPORT.md lists the names. Empty if it does not.
  std::string about(const std::string& name) const {
    Ort::AllocatorWithDefaultOptions allocator;
    const auto model = session_.GetModelMetadata();
    const auto found = model.LookupCustomMetadataMapAllocated(("surround." + name).c_str(), allocator);
    return found ? found.get() : "";
  }

  // Refuses an int8 file whose metres would be wrong on this CPU, without a word from onnxruntime.
  void require_right_here() const {
    const std::string target = about("int8_target");
    std::ifstream stream("/proc/cpuinfo");
    const std::string flags{std::istreambuf_iterator<char>(stream), {}};
    const bool has_vnni = flags.find("avx512_vnni") != std::string::npos || flags.find("avx_vnni") != std::string::npos;
    if (!target.empty() && target != "\"cpu\"" && !(target == "\"cpu-vnni\"" && has_vnni))
      throw DeployError("this int8 file is right on " + json_texts(about("int8_right_on")).at(0) +
                        ", which this CPU is not; export with --int8 cpu");
  }

  // The graph: uint8 [1, V, 3, H, W] and float32 [1, V] in, float32 metres [1, V, H, W] out.
  void run(std::uint8_t* image, float* focal_px, float* depth_m) const {
    const std::int64_t V = views_per_call_, H = height_, W = width_;
    const std::array<std::int64_t, 5> image_shape{1, V, 3, H, W};
    const std::array<std::int64_t, 4> depth_shape{1, V, H, W};
    const auto memory = Ort::MemoryInfo::CreateCpu(OrtDeviceAllocator, OrtMemTypeCPU);
    const auto tensor = [&memory](auto* values, const std::int64_t* shape, std::size_t axes) {
      std::size_t count = 1;
      for (std::size_t i = 0; i < axes; ++i) count *= static_cast<std::size_t>(shape[i]);
      return Ort::Value::CreateTensor(memory, values, count, shape, axes);
    };
    const std::array<Ort::Value, 2> inputs{tensor(image, image_shape.data(), 5),
                                           tensor(focal_px, depth_shape.data(), 2)};
    auto output = tensor(depth_m, depth_shape.data(), 4);
    const std::array<const char*, 2> input_names{"image", "focal_px"};
    const char* output_name = "depth_m";
    session_.Run(Ort::RunOptions{nullptr}, input_names.data(), inputs.data(), inputs.size(), &output_name, &output, 1);
  }

  Ort::Env environment_;
  mutable Ort::Session session_{nullptr};  // Run is not const, but may be called by several threads at once
  std::vector<std::string> cameras_;
  int height_ = 0, width_ = 0, views_per_call_ = 0;
};

// ---- The command line ----

struct Arguments {
  std::filesystem::path student, out;
  std::map<std::string, Photo> photos;
  int repeat = 1;
};

double positive(const std::string& text) {
  std::istringstream stream(text);
  double number = 0;
  return stream >> number && stream.peek() == EOF && std::isfinite(number) && number > 0 ? number : 0;
}

Arguments parsed(int count, char** values) {
  Arguments given;
  for (int i = 1; i < count; ++i) {
    const std::string word = values[i];
    if ((word == "--out" || word == "--repeat") && i + 1 < count) {
      const std::string value = values[++i];
      if (word == "--out")
        given.out = value;
      else if (given.repeat = static_cast<int>(positive(value)); given.repeat < 1)
        throw DeployError("--repeat: expected a number of times, found " + value);
    } else if (given.student.empty()) {
      given.student = word;
    } else {
      const auto equals = word.find('='), colon = word.find(':', equals == std::string::npos ? 0 : equals);
      if (equals == std::string::npos || colon == std::string::npos || equals == 0 || colon + 1 == word.size() ||
          positive(word.substr(equals + 1, colon - equals - 1)) == 0)
        throw DeployError("expected NAME=FX:FILE, such as front=1266.4:front.ppm, found " + word);
      const Photo photo{positive(word.substr(equals + 1, colon - equals - 1)), word.substr(colon + 1)};
      if (!given.photos.emplace(word.substr(0, equals), photo).second) throw DeployError("expected each camera once");
    }
  }
  if (given.photos.empty() || given.out.empty())
    throw DeployError("usage: depth STUDENT.onnx --out FOLDER [--repeat N] NAME=FX:FILE.ppm ...");
  return given;
}

}  // namespace

int main(int count, char** values) try {
  const Arguments given = parsed(count, values);
  const Student student(given.student);
  std::printf("ready\n");
  std::fflush(stdout);
  std::map<std::string, DepthMap> seen;
  std::vector<double> times_ms;
  for (int i = 0; i < given.repeat; ++i) {
    const auto begin = std::chrono::steady_clock::now();
    seen = student.look(given.photos);
    times_ms.push_back(std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now() - begin).count());
  }
  std::filesystem::create_directories(given.out);
  for (const auto& [name, map] : seen) write_npy(given.out / (name + ".npy"), map);
  std::nth_element(times_ms.begin(), times_ms.begin() + times_ms.size() / 2, times_ms.end());
  std::printf("depth of %zu image%s in %.1f ms: %s\n", seen.size(), seen.size() > 1 ? "s" : "",
              times_ms[times_ms.size() / 2], given.out.c_str());
  return 0;
} catch (const std::exception& error) {
  std::fprintf(stderr, "Error: %s\n", error.what());
  return 1;
}
