// An accelerator that is none: torch's "PrivateUse1" device with two indices, whose memory is the CPU's.
//
// 1. Kernels are the CPU's. A call is run on CPU tensors that share the memory of its arguments, so in-place calls, views and `out=` are what they are elsewhere.
// 2. What CUDA refuses is refused: one call with tensors of two devices. Allowed are, as there, CPU tensors of no dimension that are only read,
//    CPU indices for advanced indexing, and lengths of packed sequences, which have to be on the CPU.
// 3. A random generator has to be of the device that it fills.
// 4. With FXPRUNE_PRETEND_NARROW set there are no numbers in double precision, as on Apple's devices.
#include <ATen/EmptyTensor.h>
#include <ATen/TensorOperators.h>
#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/detail/PrivateUse1HooksInterface.h>
#include <ATen/ops/convolution_backward.h>
#include <c10/core/CPUAllocator.h>
#include <c10/core/impl/DeviceGuardImplInterface.h>
#include <torch/library.h>

#include <unordered_map>
#include <unordered_set>

namespace {

constexpr auto KEY = c10::DispatchKey::PrivateUse1;
constexpr auto TYPE = c10::DeviceType::PrivateUse1;
constexpr c10::DeviceIndex COUNT = 2;
thread_local c10::DeviceIndex current = 0;

void hold_narrow(at::ScalarType kind) {
  static const bool narrow = std::getenv("FXPRUNE_PRETEND_NARROW") != nullptr;
  TORCH_CHECK(!narrow || (kind != at::kDouble && kind != at::kComplexDouble), "this device does not support float64. Please use float32 instead.");
}

void release(void* context) {
  delete static_cast<c10::Storage*>(context);
}

// Memory of `storage`, as if it were of `device`; keeps `storage` alive.
c10::DataPtr shared(const c10::Storage& storage, c10::Device device) {
  return {storage.mutable_data_ptr().get(), new c10::Storage(storage), &release, device};
}

struct Memory final : c10::Allocator {
  c10::DataPtr allocate(size_t bytes) override {
    c10::Storage storage(c10::Storage::use_byte_size_t(), bytes, c10::GetCPUAllocator()->allocate(bytes), c10::GetCPUAllocator(), true);
    return shared(storage, c10::Device(TYPE, current));
  }
  void copy_data(void* dest, const void* src, std::size_t count) const override {
    default_copy_data(dest, src, count);
  }
};

Memory memory;
REGISTER_ALLOCATOR(TYPE, &memory)

struct Guard final : c10::impl::DeviceGuardImplInterface {
  c10::DeviceType type() const override { return TYPE; }
  c10::Device exchangeDevice(c10::Device device) const override {
    const auto old = getDevice();
    setDevice(device);
    return old;
  }
  c10::Device getDevice() const override { return c10::Device(TYPE, current); }
  void setDevice(c10::Device device) const override { current = device.index() < 0 ? current : device.index(); }
  void uncheckedSetDevice(c10::Device device) const noexcept override { setDevice(device); }
  c10::Stream getStream(c10::Device device) const override { return c10::Stream(c10::Stream::DEFAULT, device); }
  c10::Stream getDefaultStream(c10::Device device) const override { return getStream(device); }
  c10::Stream exchangeStream(c10::Stream stream) const override { return getStream(stream.device()); }
  c10::DeviceIndex deviceCount() const noexcept override { return COUNT; }
  void record(void**, const c10::Stream&, const c10::DeviceIndex, const c10::EventFlag) const override {}
  void block(void*, const c10::Stream&) const override {}
  bool queryEvent(void*) const override { return true; }
  bool queryStream(const c10::Stream&) const override { return true; }
  void synchronizeStream(const c10::Stream&) const override {}
  void synchronizeEvent(void*) const override {}
  void synchronizeDevice(const c10::DeviceIndex) const override {}
};

C10_REGISTER_GUARD_IMPL(PrivateUse1, Guard)

struct Hooks final : at::PrivateUse1HooksInterface {
  bool isBuilt() const override { return true; }
  bool isAvailable() const override { return true; }
  bool hasPrimaryContext(c10::DeviceIndex) const override { return true; }
  c10::DeviceIndex deviceCount() const override { return COUNT; }
  c10::DeviceIndex getCurrentDevice() const override { return current; }
  void setCurrentDevice(c10::DeviceIndex device) const override { current = device; }
  void resizePrivateUse1Bytes(const c10::Storage& storage, size_t bytes) const override {
    auto fresh = memory.allocate(bytes);
    std::memcpy(fresh.get(), storage.data(), std::min(bytes, storage.nbytes()));
    storage.unsafeGetStorageImpl()->set_data_ptr_noswap(std::move(fresh));
    storage.unsafeGetStorageImpl()->set_nbytes(bytes);
  }
};

struct Registered {
  Registered() { at::RegisterPrivateUse1HooksInterface(new Hooks()); }
} registered;

c10::Device with_index(std::optional<c10::Device> device) {
  return c10::Device(TYPE, device.has_value() && device->has_index() ? device->index() : current);
}

// CPU tensors in the place of the device's, and the way back (clause 1).
class Aliases {
 public:
  explicit Aliases(c10::Device device) : device_(device) {}

  at::Tensor to_cpu(const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_privateuseone()) return tensor;
    auto* home = tensor.storage().unsafeGetStorageImpl();
    auto found = storages_.find(home);
    if (found == storages_.end()) {
      c10::Storage alias(
          c10::Storage::use_byte_size_t(), tensor.storage().nbytes(), shared(tensor.storage(), c10::Device(c10::kCPU)), c10::GetCPUAllocator(), true);
      found = storages_.emplace(home, std::make_pair(alias, tensor.storage())).first;
    }
    auto result = made(found->second.first, c10::DispatchKey::CPU, tensor);
    pairs_.emplace_back(result, tensor);
    return result;
  }

  at::Tensor from_cpu(const at::Tensor& tensor) {
    if (!tensor.defined() || !tensor.is_cpu()) return tensor;
    for (const auto& [alias, original] : pairs_)
      if (alias.is_same(tensor)) return original;
    for (const auto& tensors : own_)
      if (tensors.is_same(tensor)) return tensor;
    return made(home_of(tensor.storage()), KEY, tensor);
  }

  void keep(const at::Tensor& tensor) { own_.push_back(tensor); }

  // What a call did to its arguments themselves: resized memory, other memory, other sizes.
  void settle() {
    for (auto& [home, both] : storages_) {
      auto& [alias, original] = both;
      if (alias.data() == original.data() && alias.nbytes() == original.nbytes()) continue;
      c10::Storage moved(c10::Storage::use_byte_size_t(), alias.nbytes(), shared(alias, c10::Device(c10::kCPU)), nullptr, false);
      home->set_data_ptr_noswap(shared(moved, original.device()));
      home->set_nbytes(alias.nbytes());
    }
    for (auto& [alias, original] : pairs_) {
      auto* impl = original.unsafeGetTensorImpl();
      auto found = storages_.find(original.storage().unsafeGetStorageImpl());
      if (found == storages_.end() || !found->second.first.is_alias_of(alias.storage())) impl->set_storage_keep_dtype(home_of(alias.storage()));
      if (impl->sizes() != alias.sizes() || impl->strides() != alias.strides() || impl->storage_offset() != alias.storage_offset())
        impl->set_sizes_and_strides(alias.sizes(), alias.strides(), alias.storage_offset());
    }
  }

 private:
  static at::Tensor made(const c10::Storage& storage, c10::DispatchKey key, const at::Tensor& like) {
    if (key == KEY) hold_narrow(like.scalar_type());
    auto result = at::detail::make_tensor<c10::TensorImpl>(c10::Storage(storage), c10::DispatchKeySet(key), like.dtype());
    result.unsafeGetTensorImpl()->set_sizes_and_strides(like.sizes(), like.strides(), like.storage_offset());
    return result;
  }

  c10::Storage home_of(const c10::Storage& storage) {
    for (const auto& [home, both] : storages_)
      if (both.first.unsafeGetStorageImpl() == storage.unsafeGetStorageImpl()) return both.second;
    return c10::Storage(c10::Storage::use_byte_size_t(), storage.nbytes(), shared(storage, device_), &memory, true);
  }

  c10::Device device_;
  std::unordered_map<c10::StorageImpl*, std::pair<c10::Storage, c10::Storage>> storages_;
  std::vector<std::pair<at::Tensor, at::Tensor>> pairs_;
  std::vector<at::Tensor> own_;
};

const std::unordered_set<std::string> INDEXING = {"aten::index", "aten::index_put", "aten::index_put_", "aten::_index_put_impl_", "aten::_unsafe_index",
                                                  "aten::_unsafe_index_put"};
const std::unordered_set<std::string> PACKING = {"aten::_pack_padded_sequence", "aten::_pack_padded_sequence_backward"};

// Clause 2.
void hold(const c10::OperatorHandle& op, const c10::Argument& argument, const at::Tensor& tensor, c10::Device device) {
  if (!tensor.defined() || tensor.device() == device) return;
  const auto& name = op.schema().name();
  const bool written = argument.alias_info() != nullptr && argument.alias_info()->isWrite();
  if (tensor.is_cpu() && !written) {
    if (tensor.dim() == 0) return;
    if (INDEXING.count(name) && argument.name() == "indices") return;
    if (PACKING.count(name) && (argument.name() == "lengths" || argument.name() == "batch_sizes")) return;
  }
  TORCH_CHECK(
      false, "Expected all tensors to be on the same device, but found at least two devices, ", device, " and ", tensor.device(), "! (argument '",
      argument.name(), "' of ", name, ")");
}

template <typename Visit>
void each(c10::IValue& value, Visit visit) {
  if (value.isTensor()) {
    value = visit(value.toTensor());
  } else if (value.isTensorList()) {
    c10::List<at::Tensor> list;
    for (const at::Tensor& tensor : value.toTensorVector()) list.push_back(visit(tensor));
    value = list;
  } else if (value.isOptionalTensorList()) {
    c10::List<std::optional<at::Tensor>> list;
    for (const std::optional<at::Tensor>& tensor : value.toOptionalTensorVector())
      list.push_back(tensor.has_value() ? std::optional<at::Tensor>(visit(*tensor)) : std::nullopt);
    value = list;
  }
}

void run(const c10::OperatorHandle& op, const c10::OperatorHandle& kernel, torch::jit::Stack* stack) {
  const auto& arguments = op.schema().arguments();
  const auto first = stack->size() - arguments.size();
  std::optional<c10::Device> device;
  for (size_t i = 0; i < arguments.size(); ++i)
    each((*stack)[first + i], [&](const at::Tensor& tensor) {
      if (!device && tensor.defined() && tensor.is_privateuseone()) device = tensor.device();
      return tensor;
    });
  for (size_t i = 0; i < arguments.size(); ++i) {
    auto& value = (*stack)[first + i];
    if (value.isDevice() && value.toDevice().type() == TYPE) {
      if (!device) device = with_index(value.toDevice());
      value = c10::Device(c10::kCPU);
    }
  }
  TORCH_CHECK(device.has_value(), "no tensor of the device in a call of ", op.schema().name());
  Aliases aliases(*device);
  for (size_t i = 0; i < arguments.size(); ++i) {
    auto& value = (*stack)[first + i];
    TORCH_CHECK(!value.isGenerator(), "Expected a '", *device, "' device type for generator but found 'cpu' (", op.schema().name(), ")");  // clause 3
    each(value, [&](const at::Tensor& tensor) {
      hold(op, arguments[i], tensor, *device);
      if (tensor.defined() && tensor.is_cpu()) aliases.keep(tensor);
      return aliases.to_cpu(tensor);
    });
  }
  kernel.redispatchBoxed(c10::DispatchKeySet(c10::DispatchKey::CPU), stack);
  aliases.settle();
  const auto returns = op.schema().returns().size();
  for (size_t i = 0; i < returns; ++i) {
    if (i == 1 && op.schema().name() == "aten::_pack_padded_sequence") continue;  // batch sizes are on the CPU everywhere
    each((*stack)[stack->size() - returns + i], [&](const at::Tensor& tensor) { return aliases.from_cpu(tensor); });
  }
}

void fallback(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  run(op, op, stack);
}

void convolution(const c10::OperatorHandle& op, torch::jit::Stack* stack) {
  run(op, c10::Dispatcher::singleton().findSchemaOrThrow("aten::convolution", ""), stack);
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> convolution_backward(
    const at::Tensor& gradient, const at::Tensor& input, const at::Tensor& weight, c10::SymIntArrayRef stride, c10::SymIntArrayRef padding,
    c10::SymIntArrayRef dilation, bool transposed, c10::SymIntArrayRef output_padding, c10::SymInt groups, std::array<bool, 3> mask) {
  TORCH_CHECK(gradient.device() == input.device() && input.device() == weight.device(), "Expected all tensors to be on the same device (convolution_backward)");
  Aliases aliases(input.device());
  const c10::SymInt channels = gradient.sym_size(1);
  auto [one, two, three] = at::convolution_backward_symint(
      aliases.to_cpu(gradient), aliases.to_cpu(input), aliases.to_cpu(weight), c10::SymIntArrayRef(&channels, 1), stride, padding, dilation, transposed,
      output_padding, groups, mask);
  return {aliases.from_cpu(one), aliases.from_cpu(two), aliases.from_cpu(three)};
}

at::Tensor empty(
    at::IntArrayRef size, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device> device, std::optional<bool>,
    std::optional<at::MemoryFormat> format) {
  const auto kind = dtype.value_or(at::typeMetaToScalarType(at::get_default_dtype()));
  hold_narrow(kind);
  const c10::impl::VirtualGuardImpl impl(TYPE);
  const auto old = impl.exchangeDevice(with_index(device));
  at::Tensor result(at::detail::empty_generic(size, &memory, c10::DispatchKeySet(KEY), kind, format));
  impl.setDevice(old);
  return result;
}

at::Tensor empty_strided(
    at::IntArrayRef size, at::IntArrayRef stride, std::optional<at::ScalarType> dtype, std::optional<at::Layout>, std::optional<at::Device> device,
    std::optional<bool>) {
  const auto kind = dtype.value_or(at::typeMetaToScalarType(at::get_default_dtype()));
  hold_narrow(kind);
  const c10::impl::VirtualGuardImpl impl(TYPE);
  const auto old = impl.exchangeDevice(with_index(device));
  at::Tensor result(at::detail::empty_strided_generic(size, stride, &memory, c10::DispatchKeySet(KEY), kind));
  impl.setDevice(old);
  return result;
}

at::Tensor copy_from(const at::Tensor& from, const at::Tensor& to, bool) {
  if (from.is_privateuseone()) hold_narrow(to.scalar_type());  // numbers are converted where they come from
  Aliases aliases(to.is_privateuseone() ? to.device() : from.device());
  aliases.to_cpu(to).copy_(aliases.to_cpu(from));
  return to;
}

at::Tensor copy_from_and_resize(const at::Tensor& from, const at::Tensor& to) {
  if (from.sizes() != to.sizes()) to.resize_(from.sizes());
  return copy_from(from, to, false);
}

at::Tensor& set_storage(at::Tensor& self, c10::Storage storage, int64_t offset, at::IntArrayRef size, at::IntArrayRef stride) {
  TORCH_CHECK(self.device() == storage.device(), "Expected all tensors to be on the same device (set_)");
  std::vector<int64_t> steps(stride.begin(), stride.end());
  if (steps.size() != size.size()) {
    steps.assign(size.size(), 1);
    for (int64_t i = static_cast<int64_t>(size.size()) - 2; i >= 0; --i) steps[i] = steps[i + 1] * std::max<int64_t>(size[i + 1], 1);
  }
  self.unsafeGetTensorImpl()->set_storage_keep_dtype(std::move(storage));
  self.unsafeGetTensorImpl()->set_sizes_and_strides(size, steps, offset);
  return self;
}

at::Tensor& set_whole_storage(at::Tensor& self, c10::Storage storage) {
  const int64_t count = static_cast<int64_t>(storage.nbytes() / self.dtype().itemsize());
  return set_storage(self, std::move(storage), 0, {count}, {1});
}

int64_t attention(
    const at::Tensor&, const at::Tensor&, const at::Tensor&, const std::optional<at::Tensor>&, double, bool, std::optional<double>, bool) {
  return 0;  // the formula; no fused kernel
}

// torch takes fused cells on accelerators; here they are the formulas of torch.nn.LSTM and torch.nn.GRU, and differentiable by their parts.
at::Tensor biased(const at::Tensor& gates, const std::optional<at::Tensor>& bias) {
  return bias.has_value() && bias->defined() ? gates + *bias : gates;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> lstm_cell(
    const at::Tensor& input, const at::Tensor& hidden, const at::Tensor& cell, const std::optional<at::Tensor>& input_bias,
    const std::optional<at::Tensor>& hidden_bias) {
  const auto gates = biased(input, input_bias) + biased(hidden, hidden_bias);
  const auto parts = gates.unsafe_chunk(4, 1);
  const auto next = parts[1].sigmoid() * cell + parts[0].sigmoid() * parts[2].tanh();
  return {parts[3].sigmoid() * next.tanh(), next, gates};
}

std::tuple<at::Tensor, at::Tensor> gru_cell(
    const at::Tensor& input, const at::Tensor& hidden, const at::Tensor& state, const std::optional<at::Tensor>& input_bias,
    const std::optional<at::Tensor>& hidden_bias) {
  const auto one = biased(input, input_bias).unsafe_chunk(3, 1);
  const auto two = biased(hidden, hidden_bias).unsafe_chunk(3, 1);
  const auto update = (one[1] + two[1]).sigmoid();
  const auto fresh = (one[2] + (one[0] + two[0]).sigmoid() * two[2]).tanh();
  return {(state - fresh) * update + fresh, update};
}

}  // namespace

TORCH_LIBRARY_IMPL(_, PrivateUse1, m) {
  m.fallback(torch::CppFunction::makeFromBoxedFunction<&fallback>());
}

TORCH_LIBRARY_IMPL(aten, PrivateUse1, m) {
  m.impl("empty.memory_format", &empty);
  m.impl("empty_strided", &empty_strided);
  m.impl("_copy_from", &copy_from);
  m.impl("_copy_from_and_resize", &copy_from_and_resize);
  m.impl("set_.source_Storage", &set_whole_storage);
  m.impl("set_.source_Storage_storage_offset", &set_storage);
  m.impl("convolution_overrideable", torch::CppFunction::makeFromBoxedFunction<&convolution>());
  m.impl("convolution_backward_overrideable", &convolution_backward);
  m.impl("_fused_sdp_choice", &attention);
  m.impl("_thnn_fused_lstm_cell", &lstm_cell);
  m.impl("_thnn_fused_gru_cell", &gru_cell);
}

TORCH_LIBRARY_IMPL(aten, AutogradPrivateUse1, m) {
  m.impl("_thnn_fused_lstm_cell", &lstm_cell);
  m.impl("_thnn_fused_gru_cell", &gru_cell);
}
